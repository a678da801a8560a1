"""Subjects, typed: what a NATS subject of this system says, and the mapping of venue symbols to tokens.

A subject is a kind (`order.intent`) followed by one token a field (`<strategy>.<venue>.<symbol>`).
`KINDS` is the whole namespace; a subject outside it does not parse.

- Names (components, strategies, venues, detectors, scopes …) match `[a-z0-9-]{1,48}`: nothing in
  them can become a wildcard, a separator or a template.
- Symbols and assets are escaped: ASCII letters and digits stand for themselves, `/` becomes `-`,
  `:` becomes `~`, every other UTF-8 byte becomes `=XX` (upper-case hex).  `BTC/USDT:USDT-240628` is
  `BTC-USDT~USDT=2D240628`.  The mapping is a bijection: a token that does not map back to itself is
  refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from tallystick.schemas.errors import Malformed

NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
# A symbol's token is bounded so that subjects stay far below NATS's control line limit (4096).
MAX_TOKEN: Final = 96
MAX_SUBJECT: Final = 255
_SYMBOL_TOKEN = re.compile(r"(?:[A-Za-z0-9~-]|=[0-9A-F]{2})+")
_ESCAPED = re.compile(rb"[^A-Za-z0-9/:]")

SEVERITIES: Final = ("info", "warning", "high", "critical")


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it may stand as a subject token and in a credential; else raise `Malformed`."""
    if not _NAME.fullmatch(name):
        raise Malformed(
            "NAME",
            f"{what} {name[:64]!r} must be 1 to 48 of a-z, 0-9 and '-', not starting or ending with '-'",
        )
    return name


@lru_cache(maxsize=4096)
def symbol_token(symbol: str) -> str:
    """The subject token of a venue symbol such as `BTC/USDT:USDT`.  Raises `Malformed`."""
    try:
        utf8 = symbol.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise Malformed("SYMBOL", f"symbol {symbol[:64]!r} is not Unicode text") from exc
    raw = _ESCAPED.sub(lambda m: b"=%02X" % m.group()[0], utf8)
    token = raw.decode("ascii").replace("/", "-").replace(":", "~")
    if not token or len(token) > MAX_TOKEN:
        raise Malformed("SYMBOL", f"symbol {symbol[:64]!r} must give 1 to {MAX_TOKEN} characters")
    return token


@lru_cache(maxsize=4096)
def token_symbol(token: str) -> str:
    """The venue symbol of a token.  Raises `Malformed` for what `symbol_token` cannot have made."""
    if len(token) > MAX_TOKEN or not _SYMBOL_TOKEN.fullmatch(token):
        raise Malformed("SYMBOL_TOKEN", f"not a symbol token: {token[:64]!r}")
    raw = token.replace("-", "/").replace("~", ":").encode("ascii")
    raw = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), raw)
    try:
        symbol = raw.decode("utf-8")
        same = symbol_token(symbol) == token
    except UnicodeDecodeError as exc:
        raise Malformed("SYMBOL_TOKEN", f"not UTF-8 when unescaped: {token[:64]!r}") from exc
    if not same:
        raise Malformed("SYMBOL_TOKEN", f"not the canonical token of its symbol: {token[:64]!r}")
    return symbol


class Kind(msgspec.Struct, frozen=True):
    """One kind of subject: its `name`, the `fields` that follow it, and the `stream` that stores it."""

    name: str
    fields: tuple[str, ...]
    stream: str

    @property
    def pattern(self) -> str:
        """The NATS wildcard that matches every subject of this kind."""
        return ".".join((self.name, *("*" for _ in self.fields)))


MARKET: Final = "MARKET"
SIGNALS: Final = "SIGNALS"
ORDERS: Final = "ORDERS"
SECURITY: Final = "SECURITY"
GUARD: Final = "GUARD"
STREAMS: Final = (MARKET, SIGNALS, ORDERS, SECURITY, GUARD)

_INSTRUMENT = ("venue", "symbol")
_STRATEGY = ("strategy", "venue", "symbol")
KINDS: Final[dict[str, Kind]] = {
    k.name: k
    for k in (
        Kind("md.trade", _INSTRUMENT, MARKET),
        Kind("md.quote", _INSTRUMENT, MARKET),
        Kind("ref.market", ("venue",), MARKET),
        Kind("signal", _STRATEGY, SIGNALS),
        Kind("order.intent", _STRATEGY, ORDERS),
        Kind("order.decision", _STRATEGY, ORDERS),
        Kind("order.event", _STRATEGY, ORDERS),
        Kind("order.correction", _STRATEGY, ORDERS),
        Kind("fill", _STRATEGY, ORDERS),
        Kind("position", _STRATEGY, ORDERS),
        Kind("balance", ("venue", "asset"), ORDERS),
        Kind("cred", ("component",), SECURITY),
        Kind("control.breaker", ("scope",), SECURITY),
        Kind("control.arm", ("component",), SECURITY),
        Kind("control.config", ("component",), SECURITY),
        Kind("control.key", ("component",), SECURITY),
        Kind("alert", ("detector", "severity"), SECURITY),
        Kind("audit.checkpoint", (), SECURITY),
        Kind("audit.cosignature", ("witness",), SECURITY),
        Kind("guard", ("component",), GUARD),
        Kind("dead", ("component",), GUARD),
    )
}
_ESCAPED_FIELDS = frozenset(("symbol", "asset"))


class Subject(msgspec.Struct, frozen=True):
    """A parsed subject: its kind and its fields, unescaped.  `text` is what NATS sees."""

    kind: str
    text: str
    stream: str
    strategy: str = ""
    venue: str = ""
    symbol: str = ""
    asset: str = ""
    component: str = ""
    scope: str = ""
    detector: str = ""
    severity: str = ""
    witness: str = ""

    def __str__(self) -> str:
        return self.text


def subject(kind: str, **fields: str) -> Subject:
    """Build the subject of `kind` from unescaped fields.  Raises `Malformed`.

    >>> subject("order.intent", strategy="momentum", venue="paper", symbol="XRP/ETH").text
    'order.intent.momentum.paper.XRP-ETH'
    """
    spec = KINDS.get(kind)
    if spec is None:
        raise Malformed("SUBJECT_KIND", f"unknown kind of subject {kind[:64]!r}; known: {', '.join(KINDS)}")
    if set(fields) != set(spec.fields):
        raise Malformed("SUBJECT_FIELDS", f"{kind} takes {spec.fields}, got {tuple(fields)}")
    tokens = [symbol_token(fields[f]) if f in _ESCAPED_FIELDS else check_name(fields[f], f) for f in spec.fields]
    return parse_subject(".".join((kind, *tokens)))


@lru_cache(maxsize=8192)
def parse_subject(text: str) -> Subject:
    """Parse a concrete subject.  Raises `Malformed` for anything outside `KINDS`, wildcards included."""
    if len(text) > MAX_SUBJECT:
        raise Malformed("SUBJECT_LENGTH", f"subject of {len(text)} characters, limit {MAX_SUBJECT}")
    tokens = text.split(".")
    for depth in (2, 1):
        spec = KINDS.get(".".join(tokens[:depth]))
        if spec is not None and len(tokens) == depth + len(spec.fields):
            break
    else:
        raise Malformed("SUBJECT", f"not a subject of this system: {text[:96]!r}")
    values: dict[str, str] = {}
    for field, token in zip(spec.fields, tokens[depth:], strict=True):
        values[field] = token_symbol(token) if field in _ESCAPED_FIELDS else check_name(token, field)
    if "severity" in values and values["severity"] not in SEVERITIES:
        raise Malformed("SEVERITY", f"{values['severity']!r} is none of {SEVERITIES}")
    return Subject(kind=spec.name, text=text, stream=spec.stream, **values)


def matches(pattern: str, text: str) -> bool:
    """Whether a NATS subject pattern (`*` one token, a final `>` one or more) covers `text`."""
    want, have = pattern.split("."), text.split(".")
    for i, token in enumerate(want):
        if token == ">":
            return i == len(want) - 1 and len(have) > i
        if i >= len(have) or (token != "*" and token != have[i]):
            return False
    return len(want) == len(have)


def overlaps(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)
