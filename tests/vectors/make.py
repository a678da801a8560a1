"""Writes `wire.json`: messages, chains, notes and trust roots, good ones and bad ones named by their defect.

    python -m tests.vectors.make

Everything follows from the seeds of `tests/support/world.py` (SHA-256 of a label) and a fixed time, and
Ed25519 signatures are deterministic: the same code gives the same bytes.  The expected codes stand here
by hand, not from running the verifier.  `tests/unit/test_vectors.py` compares the file with what this
makes and runs each vector; `tests/interop/` runs them through verifiers that share no code with ours.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from tallystick.schemas.merkle import leaf_hash, tree_levels
from tallystick.schemas.nats_jwt import Claims, SessionKey, Signer, encode_jwt, encode_key, user_claims
from tallystick.schemas.note import sign_note
from tallystick.schemas.registry import encode_events
from tallystick.schemas.seal import FLAG_CLOSE, PREFIX, message_leaf, statement_digest
from tallystick.schemas.subjects import parse_subject
from tallystick.schemas.trust import TrustRoot, sign_document
from tests.support.forge import (
    encoded,
    field,
    flush_of_five,
    forge,
    other_session,
    samples,
    sealed,
    session_key,
    writer,
)
from tests.support.world import NOW, credential, key, seed, trust_root

PATH = Path(__file__).resolve().parent / "wire.json"
SECOND = 1_000_000_000
XRP = "md.trade.paper.XRP-ETH"
M, U = "Malformed", "Unverified"


def _message(name: str, subject: str, payload: bytes, stream: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "stream": stream or parse_subject(subject).stream,
        "subject": subject,
        "payload": payload.hex(),
    }


def _good(name: str, subject: str, payload: bytes) -> dict[str, Any]:
    statement, events = field(payload, "statement"), field(payload, "events")
    values = msgspec.msgpack.decode(statement[len(PREFIX) :])
    return {
        **_message(name, subject, payload),
        "component": values[1],
        "seq": values[4],
        "index": field(payload, "index"),
        "size": values[6],
        "closes": bool(values[9]),
        "leaf": message_leaf(subject, events).hex(),
        "statement_sha256": statement_digest(statement).hex(),
        "event_tags": [event[0] for event in msgspec.msgpack.decode(events)],
    }


def good_messages() -> list[dict[str, Any]]:
    """What every verifier must accept."""
    trade = samples()[0][2]
    vectors = [_good("a single event", *sealed("market-data", encoded(XRP, trade))[0])]
    vectors += [_good(f"a flush of five, message {i}", *m) for i, m in enumerate(flush_of_five())]
    chain = writer("market-data", "MARKET")
    first = chain.seal([encoded(XRP, trade)], NOW)
    renewed, signer = credential("market-data", jti="2", issued_at=NOW + 180 * SECOND)
    chain.renew(renewed, signer)
    second = chain.seal([encoded(XRP, trade)], NOW + 181 * SECOND)
    last = chain.seal([encoded(XRP)], NOW + 182 * SECOND, close=True)
    vectors.append(_good("a chain's first statement", *first[0]))
    vectors.append(_good("the chain goes on under a renewed credential", *second[0]))
    vectors.append(_good("a closing statement without events", *last[0]))
    for component, subject, event in samples():
        tag = type(event).__struct_config__.tag
        vectors.append(_good(f"one {tag}", *sealed(component, encoded(subject, event))[0]))
    early = sealed("market-data", encoded(XRP, trade), time=NOW - SECOND)
    vectors.append(_good("stated one second before the credential was issued", *early[0]))
    at_expiry = sealed("market-data", encoded(XRP, trade), time=NOW + 300 * SECOND)
    vectors.append(_good("stated as the credential expires", *at_expiry[0]))
    return vectors


def _claims(**changes: Any) -> Claims:
    claims = user_claims(
        "market-data",
        seed("boot market-data")[:16],
        session_key("market-data").public,
        key("role market-data").public,
        key("account market-data").public,
        NOW // SECOND,
        NOW // SECOND + 300,
        "1",
    )
    return msgspec.structs.replace(claims, **changes)


def _with_credential(payload: bytes, text: str, signer: SessionKey | None = None) -> bytes:
    """The message under another credential, its statement naming that and signed by `signer`."""
    digest = hashlib.sha256(text.encode()).digest()
    return forge(
        payload, credential=text, statement={"credential": digest}, signer=signer or session_key("market-data")
    )


def _jwt(claims: Claims, role: str = "role market-data") -> str:
    return encode_jwt(key(role), "A", claims)


def bad_messages() -> list[dict[str, Any]]:
    """What every verifier must refuse, with the class and the code of the refusal."""
    trade = samples()[0][2]
    subject, good = sealed("market-data", encoded(XRP, trade))[0]
    flush = flush_of_five()
    session = session_key("market-data")
    thief = key("thief")
    statement = field(good, "statement")
    values = msgspec.msgpack.decode(statement[len(PREFIX) :])
    events = field(good, "events")
    vectors: list[dict[str, Any]] = []

    def bad(name: str, error: str, code: str, payload: bytes, where: str = subject, stream: str = "") -> None:
        vectors.append({**_message(name, where, payload, stream), "error": error, "code": code})

    def stated(name: str, error: str, code: str, **fields: object) -> None:
        bad(name, error, code, forge(good, statement=fields, signer=session))

    def carrying(name: str, error: str, code: str, data: bytes, where: str = subject) -> None:
        """Properly sealed bytes that are no legal events."""
        component = "market-data" if where == subject else "strategy-alpha"
        bad(name, error, code, sealed(component, (where, data))[0][1], where)

    # Moved: the same bytes in another place.
    bad("moved to another subject of the same stream", U, "MERKLE_ROOT", good, "md.trade.paper.BTC-USDT")
    bad("moved to another stream", U, "STREAM", good, subject, "ORDERS")
    order = sealed("strategy-alpha", encoded(samples()[4][1], samples()[4][2]))[0][1]
    bad("a subject of this stream under a statement for another", U, "STATEMENT_STREAM", order)
    bad("the broker's wildcard as a subject", M, "NAME", good, "md.trade.*.XRP-ETH", "MARKET")
    bad("a subject of no kind", M, "SUBJECT", good, "md.trades.paper.XRP-ETH", "MARKET")
    bad("a symbol that is not its canonical token", M, "SYMBOL_TOKEN", good, "md.trade.paper.XRP=2FETH", "MARKET")

    # The payload's own form.
    bad("an empty payload", M, "PAYLOAD", b"")
    bad("cut off", M, "PAYLOAD", good[:-1])
    bad("a byte behind the end", M, "PAYLOAD", good + b"\x00")
    bad("a map in place of the array", M, "PAYLOAD", b"\x87" + good[1:])
    bad("an array with a longer header", M, "PAYLOAD_CANONICAL", b"\xdc\x00\x07" + good[1:])
    bad("the version as a longer integer", M, "PAYLOAD_CANONICAL", good[:1] + b"\xcc\x01" + good[2:])
    bad("an eighth field", M, "PAYLOAD", b"\x98" + good[1:] + b"\xc0")
    bad("version 2", M, "PAYLOAD_VERSION", forge(good, version=2))
    bad("version true", M, "PAYLOAD", forge(good, version=True))
    bad("the credential as binary", M, "PAYLOAD", forge(good, credential=field(good, "credential").encode()))
    bad("the credential is not UTF-8", M, "PAYLOAD", good[:2] + b"\xa2\xff\xfe" + good[2:].split(b"eyJ", 1)[0][-1:])

    # The path.
    for name, changed in (
        ("too long", [*field(flush[0][1], "path"), bytes(32)]),
        ("too short", field(flush[0][1], "path")[:-1]),
    ):
        bad(f"a path that is {name}", U, "MERKLE_PATH", forge(flush[0][1], path=changed), flush[0][0])
    bad("a path in reverse", U, "MERKLE_ROOT", forge(flush[0][1], path=field(flush[0][1], "path")[::-1]), flush[0][0])
    bad("another index", U, "MERKLE_ROOT", forge(flush[0][1], index=1), flush[0][0])
    bad("an index beyond the tree", M, "MERKLE_INDEX", forge(flush[0][1], index=5), flush[0][0])
    bad("a negative index", M, "MERKLE_INDEX", forge(flush[0][1], index=-1), flush[0][0])
    short = [h[:31] for h in field(flush[0][1], "path")]
    bad("path hashes of 31 bytes", M, "MERKLE_PATH", forge(flush[0][1], path=short), flush[0][0])

    # The signature, and statements changed without the session key.
    bad("a signature of zeros", U, "SIGNATURE", forge(good, signature=bytes(64)))
    bad("a signature of 63 bytes", M, "SIGNATURE", forge(good, signature=field(good, "signature")[:63]))
    bad("signed by a key that no credential names", U, "SIGNATURE", forge(good, signer=thief))
    later: dict[str, object] = {"time": NOW + 1}
    bad("the statement's time changed", U, "SIGNATURE", forge(good, statement=later))
    bad("the statement's seq changed", U, "SIGNATURE", forge(good, statement={"seq": 1, "prev": seed("prev")}))
    bad("the close flag set", U, "SIGNATURE", forge(good, statement={"flags": FLAG_CLOSE}))
    bad("the root changed", U, "SIGNATURE", forge(good, statement={"root": seed("root")}))
    changed = encode_events("md.trade", [msgspec.structs.replace(trade, qty=samples()[0][2].qty + 1)])  # type: ignore[attr-defined]
    bad("the quantity changed", U, "MERKLE_ROOT", forge(good, events=changed))

    # Statements that the session key did sign, but that mean something else.
    stated("sealed for another deployment", U, "DEPLOYMENT", deployment="other")
    stated("in the name of another component", U, "STATEMENT_CREDENTIAL", component="execution")
    stated("in the name of another boot", U, "STATEMENT_CREDENTIAL", boot=seed("another boot")[:16])
    stated("naming another credential", U, "STATEMENT_CREDENTIAL", credential=seed("another credential"))
    stated("sealed for another stream", U, "STATEMENT_STREAM", stream="SIGNALS")
    stated("an unknown stream", M, "STATEMENT_STREAM", stream="STATE")
    stated("an unknown flag", M, "STATEMENT_FLAGS", flags=2)
    stated("negative flags", M, "STATEMENT_FLAGS", flags=-1)
    stated("a first statement with a predecessor", M, "STATEMENT_PREV", prev=seed("prev"))
    stated("a second statement without a predecessor", M, "STATEMENT_PREV", seq=1)
    stated("a negative seq", M, "STATEMENT", seq=-1)
    stated("a statement seq beyond 63 bits", M, "STATEMENT", seq=2**63, prev=seed("prev"))
    stated("a statement time beyond 63 bits", M, "STATEMENT", time=2**63)
    stated("an empty tree", M, "STATEMENT", size=0)
    stated("a flush of 4097", M, "STATEMENT", size=4097)
    stated("a boot of 15 bytes", M, "STATEMENT", boot=values[2][:15])
    stated("a root of 31 bytes", M, "STATEMENT", root=values[7][:31])
    stated("stated too early for its credential", U, "CREDENTIAL_EXPIRED", time=NOW - SECOND - 1)
    stated("stated after its credential expired", U, "CREDENTIAL_EXPIRED", time=NOW + 300 * SECOND + 1)
    body = statement[len(PREFIX) :]
    for name, code, raw in (
        ("a statement with another prefix", "STATEMENT", b"tallystick seal v2\x00" + body),
        ("a statement without a prefix", "STATEMENT", body),
        ("a statement with a byte behind its end", "STATEMENT", statement + b"\x00"),
        ("a statement with a twelfth field", "STATEMENT", PREFIX + b"\x9c" + body[1:] + b"\xc0"),
        ("a statement with a longer array header", "STATEMENT_CANONICAL", PREFIX + b"\xdc\x00\x0b" + body[1:]),
        ("a statement with a longer text header", "STATEMENT_CANONICAL", PREFIX + body[:1] + b"\xd9\x04" + body[2:]),
        ("a statement above 1024 bytes", "STATEMENT", PREFIX + body + bytes(1024)),
        ("a statement that is not UTF-8", "STATEMENT", PREFIX + body[:2] + b"\xff" + body[3:]),
    ):
        bad(name, M, code, forge(good, statement=raw, signer=session))

    # Credentials.
    other, other_signer = other_session("market-data")
    bad("another session's credential", U, "STATEMENT_CREDENTIAL", forge(good, credential=other.text))
    bad(
        "another component's credential", U, "STATEMENT_CREDENTIAL", forge(good, credential=credential("audit")[0].text)
    )
    elsewhere = _with_credential(good, other.text, other_signer)
    bad("another session's credential under this boot", U, "STATEMENT_CREDENTIAL", elsewhere)
    token = field(good, "credential")
    bad("a credential with its signature changed", U, "JWT_SIGNATURE", _with_credential(good, token[:-10] + "A" * 10))
    bad("a credential in two parts", M, "JWT_PARTS", _with_credential(good, token.rsplit(".", 1)[0]))
    none = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0." + token.split(".")[1] + "."
    bad("a credential with alg none", U, "JWT_HEADER", _with_credential(good, none))
    bad("a credential above 1024 characters", M, "JWT_SIZE", _with_credential(good, token + "A" * 1024))
    stolen = _jwt(_claims(iss=encode_key("A", thief.public)), "thief")
    renamed = _jwt(_claims(iss=encode_key("A", key("role audit").public)), "role audit")
    foreign = {**_claims().nats, "issuer_account": encode_key("A", key("account audit").public)}
    bad("a credential of a role key that the trust root does not name", U, "ROLE_KEY", _with_credential(good, stolen))
    bad("a credential of another component's role key", U, "ROLE_KEY", _with_credential(good, renamed))
    stranger = _with_credential(good, _jwt(_claims(name="stranger")))
    bad("a credential of an unknown component", U, "COMPONENT_UNKNOWN", stranger)
    bad("a credential of another account", U, "ACCOUNT", _with_credential(good, _jwt(_claims(nats=foreign))))
    long_lived = _with_credential(good, _jwt(_claims(exp=NOW // SECOND + 901)))
    bad("a credential that lives too long", U, "CREDENTIAL_LIFETIME", long_lived)
    for name, nats in (
        ("with permissions", {**_claims().nats, "pub": {"allow": [">"]}}),
        ("without a boot", {**_claims().nats, "tags": []}),
        ("with two boots", {**_claims().nats, "tags": [f"boot:{'0' * 32}", f"boot:{'1' * 32}"]}),
    ):
        bad(f"a credential {name}", M, "CREDENTIAL", _with_credential(good, _jwt(_claims(nats=nats))))

    # Scope.
    intent = samples()[4]
    robbed = sealed("strategy-beta", encoded(intent[1], intent[2]))[0]
    bad("an intent in another strategy's name", U, "SCOPE", robbed[1], robbed[0])
    decided = sealed("execution", encoded(samples()[6][1], samples()[6][2]))[0]
    bad("a decision by execution", U, "SCOPE", decided[1], decided[0])

    # Events, sealed by their component but not legal.
    where = intent[1]
    carrying("no events without a closing statement", M, "EVENTS_EMPTY", b"\x90")
    carrying("events that are no array", M, "EVENTS", b"\x00")
    carrying("events with a byte behind the end", M, "EVENTS", events + b"\x00")
    carrying("events with a longer array header", M, "EVENTS_CANONICAL", b"\xdc\x00\x01" + events[1:])
    carrying("an event of another kind", M, "EVENTS", encode_events("order.intent", [intent[2]]))
    raw = msgspec.msgpack.decode(events)[0]

    def event(name: str, code: str, position: int, value: object) -> None:
        carrying(name, M, code, msgspec.msgpack.encode([[*raw[:position], value, *raw[position + 1 :]]]))

    carrying("an event with a field too many", M, "EVENTS", msgspec.msgpack.encode([[*raw, None]]))
    carrying("an event with a field missing", M, "EVENTS", msgspec.msgpack.encode([raw[:-1]]))
    event("an unknown event version", "EVENTS", 0, "md.trade/2")
    event("an id of 15 bytes", "EVENTS", 1, raw[1][:15])
    event("an id as text", "EVENTS", 1, "AAAAAAAAAAAAAAAAAAAAAA==")
    event("a negative time", "EVENTS", 2, -1)
    event("a time beyond 63 bits", "EVENTS", 2, 2**63)
    event("65 causes", "EVENTS", 3, [raw[1]] * 65)
    event("a cause of 17 bytes", "EVENTS", 3, [raw[1] + b"x"])
    event("an input position that falls below zero", "EVENTS", 4, [["MARKET", -1]])
    event("a price of zero", "EVENTS", 6, "0")
    event("a price below zero", "EVENTS", 6, "-1")
    event("a price of NaN", "EVENTS", 6, "NaN")
    event("an infinite price", "EVENTS", 6, "Infinity")
    event("a price as a float", "EVENTS_CANONICAL", 6, 0.5)
    event("a price as an integer", "EVENTS_CANONICAL", 6, 1)
    event("a price with 19 decimals", "EVENTS", 6, "0.0000000000000000001")
    event("a price of 10^20", "EVENTS", 6, "100000000000000000000")
    event("a price with a plus sign", "EVENTS_CANONICAL", 6, "+1")
    event("a price with a leading zero", "EVENTS_CANONICAL", 6, "01")
    event("a price with a lower-case exponent", "EVENTS_CANONICAL", 6, "1e3")
    event("a price with spaces", "EVENTS_CANONICAL", 6, " 1 ")
    event("a price with an underscore", "EVENTS_CANONICAL", 6, "1_000")
    event("a price in Arabic digits", "EVENTS_CANONICAL", 6, "\u0661")
    event("a trade id beyond 63 bits", "EVENTS", 5, 2**63)
    event("a truth value as an integer", "EVENTS", 9, 1)
    as_intent = msgspec.msgpack.decode(encode_events("order.intent", [intent[2]]))[0]
    for name, values_ in (
        ("an intent with an unknown side", [*as_intent[:5], "long", *as_intent[6:]]),
        ("a limit order without a price", [*as_intent[:8], None, *as_intent[9:]]),
        ("a market order with a price", [*as_intent[:6], "market", *as_intent[7:]]),
    ):
        carrying(name, M, "EVENTS", msgspec.msgpack.encode([values_]), where)
    return vectors


def chains() -> list[dict[str, Any]]:
    """Sequences as one reader meets them; `codes` says what becomes of each message (null: accepted)."""
    trade = samples()[0][2]
    one, other = encoded(XRP, trade), encoded("md.trade.paper.BTC-USDT", trade)

    def flushes(count: int, label: str = "", *, close: bool = False) -> list[list[tuple[str, bytes]]]:
        chain = writer("market-data", "MARKET", **({"boot": seed(label)[:16], "jti": label} if label else {}))
        made = [chain.seal([one, other], NOW + i) for i in range(count)]
        return [*made, chain.seal([encoded(XRP)], NOW + count, close=True)] if close else made

    a, b, closing = flushes(4), flushes(2, "second-boot"), flushes(1, close=True)
    forked = writer("market-data", "MARKET")
    forked.seal([other], NOW)
    fork = forked.seal([one], NOW + 1)
    after = writer("market-data", "MARKET")
    for i in range(2):
        after.seal([one, other], NOW + i)
    late = after.seal([one], NOW + 9)
    chain = writer("market-data", "MARKET")
    before = chain.seal([one], NOW)
    chain.renew(*credential("market-data", jti="2", issued_at=NOW + 180 * SECOND))
    renewed = chain.seal([one], NOW + 181 * SECOND)
    cases: list[tuple[str, list[tuple[str, bytes]], list[str | None]]] = [
        ("in order", [m for f in a for m in f], [None] * 8),
        ("a part of the stream: gaps between statements", [a[0][0], a[2][1], a[3][0]], [None] * 3),
        ("the messages of one flush in another order", [a[0][1], a[0][0], a[1][0]], [None] * 3),
        ("two boots side by side", [a[0][0], b[0][0], a[1][0], b[1][0]], [None] * 4),
        ("a renewed credential goes on", [before[0], renewed[0]], [None] * 2),
        ("a message twice", [a[0][0], a[0][0], a[0][1]], [None, "REPLAY", None]),
        ("a message of an older statement", [a[1][0], a[0][0], a[1][1]], [None, "REPLAY", None]),
        ("two statements of one seq", [a[1][0], fork[0]], [None, "FORK"]),
        ("a statement that does not follow the one before", [a[0][0], fork[0], a[1][0]], [None, "FORK", None]),
        ("the end of a chain", [closing[0][0], closing[1][0]], [None, None]),
        ("a statement after the closing one", [closing[1][0], late[0]], [None, "CLOSED"]),
    ]
    return [
        {
            "name": name,
            "messages": [{"subject": subject, "stream": "MARKET", "payload": p.hex()} for subject, p in messages],
            "codes": codes,
        }
        for name, messages, codes in cases
    ]


def live() -> list[dict[str, Any]]:
    """When a message still counts as live: the statement's time is `time`, the receiver's clock `received`."""
    limits = {
        "md.trade": 10,
        "order.intent": 3,
        "order.decision": 5,
        "cred": 5,
        "guard": 60,
    }
    made: list[dict[str, Any]] = []
    for kind, seconds in limits.items():
        for name, received, code in (
            ("at once", NOW, None),
            ("as old as may be", NOW + seconds * SECOND, None),
            ("too old", NOW + seconds * SECOND + 1, "STALE"),
            ("one second ahead of the clock", NOW - SECOND, None),
            ("further ahead of the clock", NOW - SECOND - 1, "FUTURE"),
        ):
            made.append({"name": f"{kind} {name}", "kind": kind, "time": NOW, "received": received, "code": code})
    return made


def _roots() -> tuple[TrustRoot, TrustRoot, TrustRoot]:
    first = trust_root()
    second = msgspec.structs.replace(first, number=2, issued=first.issued + SECOND)
    rotated = msgspec.structs.replace(second, number=2, operator_root=key("operator-root 2").public.hex())
    return first, second, rotated


def trust_roots() -> dict[str, list[dict[str, Any]]]:
    """Sequences of trust roots under the pinned key."""
    first, second, rotated = _roots()
    third = msgspec.structs.replace(rotated, number=3)
    old, new, thief = key("operator-root"), key("operator-root 2"), key("thief")

    def note(root: TrustRoot, *signers: Signer) -> str:
        return sign_document(root, *(("operator-root", s) for s in signers))

    one = note(first, old)
    good = [
        {"name": "version 1", "notes": [one], "number": 1},
        {"name": "a second version", "notes": [one, note(second, old)], "number": 2},
        {"name": "a new key, signed by old and new", "notes": [one, note(rotated, old, new)], "number": 2},
        {"name": "after a new key", "notes": [one, note(rotated, old, new), note(third, new)], "number": 3},
        {"name": "signed by an unknown key as well", "notes": [note(first, old, thief)], "number": 1},
    ]
    text = one.split("\n\n", maxsplit=1)[0] + "\n"
    bad: list[tuple[str, list[str], str, str]] = [
        ("none", [], U, "TRUST_ROOT_MISSING"),
        ("no note", ["{}"], M, "NOTE"),
        ("signed by another key", [note(first, thief)], U, "NOTE_UNSIGNED"),
        ("text changed", [one.replace('"lifetime": 900', '"lifetime": 901', 1)], U, "NOTE_SIGNATURE"),
        (
            "not canonical: a space",
            [sign_note(text.replace("{", "{ ", 1), ("operator-root", old))],
            M,
            "DOCUMENT_CANONICAL",
        ),
        ("an unknown field", [sign_note(text.replace("{", '{"x": 1,', 1), ("operator-root", old))], M, "DOCUMENT"),
        ("version 2 first", [note(second, old)], U, "TRUST_ROOT_NUMBER"),
        ("version 1 twice", [one, one], U, "TRUST_ROOT_NUMBER"),
        ("a version left out", [one, note(third, old)], U, "TRUST_ROOT_NUMBER"),
        ("a new key that the old one did not sign", [one, note(rotated, new)], U, "NOTE_UNSIGNED"),
        ("a new key that did not sign itself", [one, note(rotated, old)], U, "NOTE_UNSIGNED"),
        ("the old key after its end", [one, note(rotated, old, new), note(third, old)], U, "NOTE_UNSIGNED"),
        (
            "another deployment follows",
            [one, note(msgspec.structs.replace(second, deployment="other"), old)],
            U,
            "TRUST_ROOT_DEPLOYMENT",
        ),
        (
            "version 1 names another operator root",
            [note(msgspec.structs.replace(first, operator_root=new.public.hex()), old, new)],
            U,
            "TRUST_ROOT_KEY",
        ),
    ]
    return {"good": good, "bad": [{"name": n, "notes": s, "error": e, "code": c} for n, s, e, c in bad]}


def notes() -> dict[str, Any]:
    """Signed notes under one key, `example.org/log`."""
    name, signer, thief = "example.org/log", key("log"), key("thief")
    good = sign_note("one line\n\nand another — after an empty one\n", (name, signer))
    text, line = good.rsplit("\n\n", 1)
    bad: list[tuple[str, str, str, str]] = [
        ("empty", "", M, "NOTE"),
        ("no signature", text + "\n", M, "NOTE_SIGNATURE"),
        ("text without its newline", line, M, "NOTE"),
        ("a changed text", good.replace("one", "two", 1), U, "NOTE_SIGNATURE"),
        ("signed by another key of the same name", sign_note("x\n", (name, thief)), U, "NOTE_UNSIGNED"),
        ("signed by another name", sign_note("x\n", ("example.com", thief)), U, "NOTE_UNSIGNED"),
        ("a hyphen for the dash", good.replace("\n\n— ", "\n\n- "), M, "NOTE_SIGNATURE"),
        ("no newline at the end", good[:-1], M, "NOTE"),
        ("a tab in the text", good.replace("one line", "one\tline"), M, "NOTE_TEXT"),
        ("17 signatures", good + line * 16, M, "NOTE"),
    ]
    return {
        "name": name,
        "public_key": signer.public.hex(),
        "good": [
            {"name": "signed once", "note": good},
            {"name": "signed twice", "note": sign_note("x\n", (name, signer), ("other", thief))},
        ],
        "bad": [{"name": n, "note": s, "error": e, "code": c} for n, s, e, c in bad],
    }


def merkle() -> list[dict[str, str | int]]:
    """Roots of the trees over the one-byte leaves 00, 01, 02 …"""
    leaves = [leaf_hash(bytes([i])) for i in range(256)]
    return [{"size": n, "root": tree_levels(leaves[:n])[-1][0].hex()} for n in (1, 2, 3, 4, 5, 7, 8, 9, 100, 256)]


def make() -> dict[str, Any]:
    """The whole file."""
    return {
        "about": "Made by tests/vectors/make.py from fixed seeds; see docs/wire-format.md. All keys are public throw-aways.",
        "pinned": key("operator-root").public.hex(),
        "trust_root": sign_document(trust_root(), ("operator-root", key("operator-root"))),
        "messages": {"good": good_messages(), "bad": bad_messages()},
        "chains": chains(),
        "live": live(),
        "trust_roots": trust_roots(),
        "notes": notes(),
        "merkle": merkle(),
    }


def text() -> str:
    """The file's text."""
    return json.dumps(make(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
