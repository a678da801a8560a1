"""A second verifier, written from `docs/wire-format.md` alone.

It shares no code with the system: the standard library, Ed25519 from `cryptography`, a msgpack reader
of its own that takes nothing but shortest forms, Merkle trees by recursion, and the tables of the
document itself as its schema.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HERE = Path(__file__).resolve().parent
DOC = HERE.parent.parent / "docs" / "wire-format.md"
VECTORS_FILE = HERE.parent / "vectors" / "wire.json"
VECTORS: dict[str, Any] = json.loads(VECTORS_FILE.read_text(encoding="utf-8"))
I63 = 2**63


class RefusedError(Exception):
    def __init__(self, malformed: bool, code: str) -> None:
        super().__init__(code)
        self.error, self.code = ("Malformed" if malformed else "Unverified"), code


def must(condition: object, code: str, *, malformed: bool = False) -> None:
    if not condition:
        raise RefusedError(malformed, code)


def form(condition: object, code: str) -> None:
    must(condition, code, malformed=True)


def signed(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


# -- msgpack, shortest forms only -----------------------------------------------------------------


class Bin(bytes):
    """Binary, to be told from text."""


class Reader:
    def __init__(self, data: bytes, code: str) -> None:
        self.data, self.at, self.code = data, 0, code

    def take(self, n: int) -> bytes:
        form(n <= len(self.data) - self.at, self.code)
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n: int, least: int) -> int:
        value = int.from_bytes(self.take(n), "big")
        form(value >= least, self.code)
        return value

    def signed_number(self, n: int, above: int) -> int:
        value = int.from_bytes(self.take(n), "big", signed=True)
        form(value < above, self.code)
        return value

    def text(self, n: int) -> str:
        try:
            return self.take(n).decode()
        except UnicodeDecodeError:
            raise RefusedError(True, self.code) from None

    def value(self, depth: int = 0) -> Any:
        form(depth < 8, self.code)
        head = self.take(1)[0]
        if head < 0x80:
            return head
        if head >= 0xE0:
            return head - 256
        if 0x90 <= head < 0xA0:
            return [self.value(depth + 1) for _ in range(head - 0x90)]
        if 0xA0 <= head < 0xC0:
            return self.text(head - 0xA0)
        match head:
            case 0xC0:
                return None
            case 0xC2 | 0xC3:
                return head == 0xC3
            case 0xC4 | 0xC5 | 0xC6:
                return Bin(self.take(self.number(1 << head - 0xC4, (0, 1 << 8, 1 << 16)[head - 0xC4])))
            case 0xCC | 0xCD | 0xCE | 0xCF:
                return self.number(1 << head - 0xCC, (1 << 7, 1 << 8, 1 << 16, 1 << 32)[head - 0xCC])
            case 0xD0 | 0xD1 | 0xD2 | 0xD3:
                return self.signed_number(1 << head - 0xD0, (-32, -(1 << 7), -(1 << 15), -(1 << 31))[head - 0xD0])
            case 0xD9 | 0xDA | 0xDB:
                return self.text(self.number(1 << head - 0xD9, (32, 1 << 8, 1 << 16)[head - 0xD9]))
            case 0xDC | 0xDD:
                count = self.number(2 << head - 0xDC, (16, 1 << 16)[head - 0xDC])
                form(count <= len(self.data), self.code)
                return [self.value(depth + 1) for _ in range(count)]
        raise RefusedError(True, self.code)


def unpack(data: bytes, code: str) -> Any:
    reader = Reader(data, code)
    value = reader.value()
    form(reader.at == len(data), code)
    return value


# -- the document's tables as schema --------------------------------------------------------------


def table(name: str) -> list[list[str]]:
    text = DOC.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def fields(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`(\w+)` ((?:[^,`]|,(?! `))+)", cell)


KINDS = {}
SIZES = {}
for _row in table("subjects"):
    _tokens = _row[0].strip("`").split(".")
    _fixed = ".".join(t for t in _tokens if t[0] != "<")
    KINDS[_fixed] = ([t.strip("<>") for t in _tokens if t[0] == "<"], _row[1], int(_row[2].split()[0]) * 10**9)
    SIZES[_fixed] = tuple(int(cell.replace(",", "")) for cell in _row[3:5])
EVENTS = {row[0].strip("`"): (row[1].strip("`"), fields(row[2])) for row in table("events")}
STRUCTS = {row[0]: fields(row[1]) for row in table("structs")}


def is_decimal(value: object) -> bool:
    if not isinstance(value, str) or not value.isascii() or "_" in value:
        return False
    try:
        number = Decimal(value)
    except InvalidOperation:
        return False
    if not number.is_finite() or str(number) != value:
        return False
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    if not number:
        return abs(exponent) <= 64
    decimals = -exponent - (len(text) - len(text.rstrip("0")))
    return number.adjusted() < 20 and decimals <= 18


def fits(value: object, of: str) -> bool:
    if of.endswith(" or nil"):
        return value is None or fits(value, of[:-7])
    if of.startswith("array of "):
        return isinstance(value, list) and all(fits(v, of[9:]) for v in value)
    if of.startswith('"'):
        return value in [v.strip('" ') for v in of.split("/")]
    if of.startswith("bin"):
        return isinstance(value, Bin) and (of == "bin" or len(value) == int(of[4:-1]))
    if of in {"int", "count"}:
        return type(value) is int and (0 if of == "count" else -I63) <= value < I63
    if of == "integer":
        return type(value) is int
    if of == "text":
        return isinstance(value, str)
    if of == "bool":
        return isinstance(value, bool)
    if of == "decimal":
        return is_decimal(value)
    wanted = STRUCTS[of]
    return (
        isinstance(value, list)
        and len(value) == len(wanted)
        and all(fits(v, t) for v, (_, t) in zip(value, wanted, strict=True))
        and (of != "Session" or len(value[4]) in {0, 32})
    )


POSITIVE = {
    "md.trade": ("price", "qty"),
    "fill": ("price", "qty"),
    "md.quote": ("bid", "ask"),
    "order.intent": ("qty",),
}


def check_event(event: object, kind: str) -> None:
    form(isinstance(event, list) and event and isinstance(event[0], str) and event[0] in EVENTS, "EVENTS")
    assert isinstance(event, list)
    stands_on, wanted = EVENTS[event[0]]
    form(stands_on == kind and len(event) == 5 + len(wanted), "EVENTS")
    _, id_, ts, causes, at, *own = event
    form(fits(id_, "bin(16)") and fits(ts, "count"), "EVENTS")
    form(fits(causes, "array of bin(16)") and len(causes) <= 64 and fits(at, "array of At"), "EVENTS")
    form(all(fits(v, t) for v, (_, t) in zip(own, wanted, strict=True)), "EVENTS")
    named = {name: v for v, (name, _) in zip(own, wanted, strict=True)}
    tag = event[0].split("/")[0]
    form(all(Decimal(named[f]) > 0 for f in POSITIVE.get(tag, ())), "EVENTS")
    pairs = {"md.trade": (("price", "qty"),), "md.quote": (("bid", "bid_qty"), ("ask", "ask_qty"))}.get(tag, ())
    for price, qty in ((Decimal(named[a]), Decimal(named[b])) for a, b in pairs):
        form(price <= 10**12 and qty <= 10**16 and Fraction(price) * Fraction(qty) <= 10**18, "EVENTS")
    if tag == "order.intent":
        limit = named["type"] == "limit"
        form((named["price"] is not None) == limit and (not limit or Decimal(named["price"]) > 0), "EVENTS")
    if tag == "order.decision":
        form((named["verdict"] == "permit") == (named["permit"] is not None), "EVENTS")
        form((named["verdict"] == "deny") == bool(named["denials"]), "EVENTS")
        form(len(named["policy_hash"]) in {0, 32}, "EVENTS")
    if tag == "order.event":
        form(len(named["decision_id"]) in {0, 16}, "EVENTS")
    if tag == "fill":
        form(len(named["intent_id"]) in {0, 16}, "EVENTS")
    if tag == "dead":
        form(len(named["payload"]) <= 65_536, "EVENTS")


# -- subjects -------------------------------------------------------------------------------------

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")


def escape(symbol: bytes) -> str:
    plain = re.compile(rb"[A-Za-z0-9]")
    return "".join(chr(b) if plain.match(bytes((b,))) else {0x2F: "-", 0x3A: "~"}.get(b, f"={b:02X}") for b in symbol)


def parse_subject(text: str) -> tuple[str, str]:
    """(kind, stream)."""
    form(len(text) <= 255, "SUBJECT_LENGTH")
    tokens = text.split(".")
    for depth in (2, 1):
        kind = ".".join(tokens[:depth])
        if kind in KINDS and len(tokens) == depth + len(KINDS[kind][0]):
            break
    else:
        raise RefusedError(True, "SUBJECT")
    names, stream, _ = KINDS[kind]
    for name, token in zip(names, tokens[depth:], strict=True):
        if name in {"symbol", "asset"}:
            form(re.fullmatch(r"([A-Za-z0-9~-]|=[0-9A-F]{2}){1,96}", token) and len(token) <= 96, "SYMBOL_TOKEN")
            swapped = token.replace("-", "/").replace("~", ":")
            raw = re.sub("=(..)", lambda m: chr(int(m[1], 16)), swapped).encode("latin-1")
            form(escape(raw) == token, "SYMBOL_TOKEN")
            try:
                raw.decode()
            except UnicodeDecodeError:
                raise RefusedError(True, "SYMBOL_TOKEN") from None
        else:
            form(NAME.fullmatch(token), "NAME")
            form(name != "severity" or token in {"info", "warning", "high", "critical"}, "SEVERITY")
    return kind, stream


def covers(pattern: str, subject: str) -> bool:
    regex = re.escape(pattern).replace(r"\*", "[^.]+")
    regex = re.sub(r"\\\.>$|\\\.\\>$", r"(\\.[^.]+)+", regex)
    return re.fullmatch(regex, subject) is not None


# -- notes and trust roots ------------------------------------------------------------------------


def open_note(note: str, keys: dict[str, bytes]) -> str:
    form(len(note) <= 1 << 20, "NOTE_SIZE")
    at = note.rfind("\n\n")
    form(at >= 0 and note[at + 2 :].endswith("\n"), "NOTE")
    text, lines = note[: at + 1], note[at + 2 : -1].split("\n")
    form(not re.search(r"[\x00-\x09\x0b-\x1f]", text), "NOTE_TEXT")
    form(len(lines) <= 16, "NOTE")
    known = False
    for line in lines:
        found = re.fullmatch("— (\\S+) ([A-Za-z0-9+/]+=*)", line)
        form(found, "NOTE_SIGNATURE")
        assert found is not None
        name, raw = found[1], base64.b64decode(found[2])
        if name in keys and raw[:4] == sha(name.encode(), b"\n\x01", keys[name])[:4]:
            must(signed(keys[name], raw[4:], text.encode()), "NOTE_SIGNATURE")
            known = True
    must(known, "NOTE_UNSIGNED")
    return text


ROOT_FIELDS = {
    "kind",
    "deployment",
    "number",
    "issued",
    "expires",
    "operator_root",
    "operator",
    "core_account",
    "components",
    "venues",
}
ROOT_FIELDS |= {"instruments", "caps", "limits", "listings", "policy"}


def open_roots(notes: list[str], pinned: bytes) -> dict[str, Any]:
    must(notes, "TRUST_ROOT_MISSING")
    key: bytes = pinned
    previous: dict[str, Any] | None = None
    for number, note in enumerate(notes, start=1):
        text = open_note(note, {"operator-root": key})
        root: dict[str, Any] = json.loads(text)
        form(set(root) == ROOT_FIELDS, "DOCUMENT")
        form(json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n" == text, "DOCUMENT")
        must(root["number"] == number, "TRUST_ROOT_NUMBER")
        must(number > 1 or root["operator_root"] == pinned.hex(), "TRUST_ROOT_KEY")
        must(previous is None or previous["deployment"] == root["deployment"], "TRUST_ROOT_DEPLOYMENT")
        key, previous = bytes.fromhex(root["operator_root"]), root
        open_note(note, {"operator-root": key})
    assert previous is not None
    return previous


# -- credentials ----------------------------------------------------------------------------------


def nkey(text: str, kind: str) -> bytes:
    form(re.fullmatch(r"[OAUN][A-Z2-7]{55}", text), "KEY_TEXT")
    raw = base64.b32decode(text)
    form(raw[0] == {"O": 0x70, "A": 0x00, "U": 0xA0}[kind], "KEY_PREFIX")
    crc = 0
    for byte in raw[:33]:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    form(raw[33:] == crc.to_bytes(2, "little"), "KEY_CHECKSUM")
    return raw[1:33]


def unb64(text: str) -> bytes:
    form(re.fullmatch(r"[A-Za-z0-9_-]+", text) and len(text) % 4 != 1, "JWT_BASE64")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    form(base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text, "JWT_BASE64")
    return raw


CLAIMS = re.compile(
    r'\{"iat":([1-9]\d*),"iss":"([^"]*)","sub":"([^"]*)","name":"([^"]*)","exp":([1-9]\d*),"jti":"([^"]*)",'
    r'"nats":\{"issuer_account":"([^"]*)","tags":\["boot:([0-9a-f]{32})"\],"type":"user","version":2\}\}'
)


def open_credential(text: str, root: dict[str, Any]) -> dict[str, Any]:
    form(len(text) <= 1024 and text.isascii(), "JWT_SIZE")
    parts = text.split(".")
    form(len(parts) == 3, "JWT_PARTS")
    must(unb64(parts[0]) == b'{"typ":"JWT","alg":"ed25519-nkey"}', "JWT_HEADER")
    body, signature = unb64(parts[1]), unb64(parts[2])
    form(len(signature) == 64, "JWT_SIGNATURE")
    role = nkey(json.loads(body)["iss"], "A")
    must(signed(role, signature, ".".join(parts[:2]).encode()), "JWT_SIGNATURE")
    found = CLAIMS.fullmatch(body.decode())
    form(found, "CREDENTIAL")
    assert found is not None
    issued, expires, name = int(found[1]), int(found[5]), found[4]
    session, account = nkey(found[3], "U"), nkey(found[7], "A")
    form(NAME.fullmatch(name), "NAME")
    form(0 < issued < expires, "JWT_TIMES")
    form(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found[6]), "JWT_ID")
    must(name in root["components"], "COMPONENT_UNKNOWN")
    record = root["components"][name]
    must(nkey(record["role_key"], "A") == role, "ROLE_KEY")
    must(nkey(record["account"], "A") == account, "ACCOUNT")
    must(expires - issued <= record["lifetime"], "CREDENTIAL_LIFETIME")
    return {"name": name, "boot": bytes.fromhex(found[8]), "session": session, "iat": issued, "exp": expires}


# -- messages -------------------------------------------------------------------------------------

PREFIX = b"tallystick seal v1\x00"
STREAMS = {stream for _, stream, _ in KINDS.values()}
STATEMENT = ["text", "text", "bin(16)", "text", "count", "bin(32)", "count", "bin(32)", "count", "integer", "bin(32)"]
PAYLOAD = ["integer", "text", "bin", "bin", "integer", "array of bin", "bin"]


def root_at(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 6962 section 2.1.1, from the root down."""
    if size == 1:
        must(not path, "MERKLE_PATH")
        return leaf
    must(path, "MERKLE_PATH")
    k = 1 << (size - 1).bit_length() - 1
    if index < k:
        return sha(b"\x01", root_at(leaf, index, k, path[:-1]), path[-1])
    return sha(b"\x01", path[-1], root_at(leaf, index - k, size - k, path[:-1]))


def verify(root: dict[str, Any], subject: str, stream: str, raw: bytes) -> dict[str, Any]:
    kind, belongs = parse_subject(subject)  # 1
    must(belongs == stream, "STREAM")
    most, size_of_events = SIZES[kind]
    form(len(raw) <= size_of_events + 4096, "PAYLOAD_SIZE")  # 2
    payload = unpack(raw, "PAYLOAD")
    form(isinstance(payload, list) and len(payload) == 7, "PAYLOAD")
    form(all(fits(v, t) for v, t in zip(payload, PAYLOAD, strict=True)), "PAYLOAD")
    version, text, statement, signature, index, path, events = payload
    form(version == 1, "PAYLOAD_VERSION")
    credential = open_credential(text, root)  # 3
    form(statement.startswith(PREFIX) and len(statement) <= 1024, "STATEMENT")  # 4
    stated = unpack(statement[len(PREFIX) :], "STATEMENT")
    form(isinstance(stated, list) and len(stated) == 11, "STATEMENT")
    form(all(fits(v, t) for v, t in zip(stated, STATEMENT, strict=True)), "STATEMENT")
    deployment, component, boot, sealed_for, seq, prev, size, tree, time, flags, digest = stated
    form(1 <= size <= 4096, "STATEMENT")
    form(flags in {0, 1}, "STATEMENT_FLAGS")
    form(sealed_for in STREAMS, "STATEMENT_STREAM")
    form((prev == bytes(32)) == (seq == 0), "STATEMENT_PREV")
    must(deployment == root["deployment"], "DEPLOYMENT")
    same = (component, boot, digest) == (credential["name"], credential["boot"], sha(text.encode()))
    must(same, "STATEMENT_CREDENTIAL")
    form(len(signature) == 64, "SIGNATURE")  # 5
    must(signed(credential["session"], signature, statement), "SIGNATURE")
    must((credential["iat"] - 1) * 10**9 <= time <= credential["exp"] * 10**9, "CREDENTIAL_EXPIRED")  # 6
    must(sealed_for == stream, "STATEMENT_STREAM")  # 7
    form(0 <= index < size, "MERKLE_INDEX")  # 8
    form(all(len(h) == 32 for h in path), "MERKLE_PATH")
    leaf = sha(b"\x00", len(subject).to_bytes(2, "big"), subject.encode(), events)
    must(root_at(leaf, index, size, path) == tree, "MERKLE_ROOT")
    must(any(covers(p, subject) for p in root["components"][component]["publishes"]), "SCOPE")  # 9
    form(len(events) <= size_of_events, "EVENTS_SIZE")  # 10
    decoded = unpack(events, "EVENTS")
    form(isinstance(decoded, list), "EVENTS")
    form(len(decoded) <= most, "EVENTS_SIZE")
    for event in decoded:
        check_event(event, kind)
    form(decoded or flags == 1, "EVENTS_EMPTY")
    return {
        "component": component,
        "boot": boot,
        "seq": seq,
        "prev": prev,
        "index": index,
        "size": size,
        "time": time,
        "closes": flags == 1,
        "leaf": leaf.hex(),
        "statement_sha256": sha(statement).hex(),
        "event_tags": [event[0] for event in decoded],
    }


class Chains:
    def __init__(self) -> None:
        self.newest: dict[tuple[str, bytes], tuple[int, str, set[int], bool]] = {}

    def accept(self, m: dict[str, Any]) -> None:
        key = (m["component"], m["boot"])
        seq, digest, indexes, closed = self.newest.get(key, (-1, "", set(), False))
        must(m["seq"] >= seq, "REPLAY")
        if m["seq"] == seq:
            must(m["statement_sha256"] == digest, "FORK")
            must(m["index"] not in indexes, "REPLAY")
            indexes.add(m["index"])
            return
        must(not closed, "CLOSED")
        must(seq < 0 or m["seq"] > seq + 1 or m["prev"].hex() == digest, "FORK")
        self.newest[key] = (m["seq"], m["statement_sha256"], {m["index"]}, m["closes"])


# -- on the vectors -------------------------------------------------------------------------------


@functools.cache
def trust() -> dict[str, Any]:
    return open_roots([VECTORS["trust_root"]], bytes.fromhex(VECTORS["pinned"]))


def judged(call: functools.partial[Any]) -> tuple[str, str] | None:
    """None if accepted, else (class, code); `_CANONICAL` is one of the codes' spellings."""
    try:
        call()
    except RefusedError as refused:
        return refused.error, refused.code
    return None
