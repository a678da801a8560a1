"""Arbitrary and mutated input to everything on the wire that parses: it is read, or refused by an error of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.schemas import enrolment, ids, nats_jwt, signing
from tallystick.schemas.arming import open_arm_lease
from tallystick.schemas.credential import open_credential
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.note import open_note, sign_note
from tallystick.schemas.registry import EVENTS, decode_events, encode_events
from tallystick.schemas.seal import PREFIX, Verifier, decode_statement, encode_statement
from tallystick.schemas.subjects import matches, parse_subject, subject, token_symbol
from tallystick.schemas.trust import open_rearm, open_trust_roots, sign_document
from tests.support.forge import encoded, field, flush_of_five, forge, samples, sealed, session_key
from tests.support.world import NOW, credential, key, trust_root

ROOT = trust_root()
PINNED = key("operator-root")
ROOT_NOTE = sign_document(ROOT, ("operator-root", PINNED))
KEYS = {"operator-root": PINNED.public}
VERIFIER = Verifier(ROOT)
FLUSH = flush_of_five()
XRP = "md.trade.paper.XRP-ETH"
ENCODED = [encoded(subject, event) for _, subject, event in samples()]
TOKEN = field(FLUSH[0][1], "credential")

texts = st.text(st.characters(exclude_categories=()), max_size=60)
msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)
msgpack = msgpack_values.map(msgspec.msgpack.encode)


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """An original with one to three cuts, insertions or replacements."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data = data[:start] + draw(st.binary(max_size=6)) + data[end:]
    return data


REFUSALS: tuple[type[TallystickError], ...] = (Malformed, Unverified)


def readable(
    parse: Callable[[], object], refusals: type[TallystickError] | tuple[type[TallystickError], ...] = REFUSALS
) -> bool:
    """Whether `parse` accepts; anything but `refusals` passes through and fails the test."""
    try:
        parse()
    except refusals:
        return False
    return True


# -- subjects -------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=24))
def test_symbols_and_tokens_are_a_bijection(symbol: str) -> None:
    try:
        made = subject("md.trade", venue="paper", symbol=symbol)
    except Malformed:
        assert any("\ud800" <= c <= "\udfff" for c in symbol) or len(symbol.encode()) * 3 > 96
        return
    token = made.text.removeprefix("md.trade.paper.")
    assert token_symbol(token) == symbol == made.symbol
    assert parse_subject(made.text) == made
    assert not set(token) & set(".*> \t\r\n$")
    assert token.isascii()


@given(st.from_regex(r"(?:[A-Za-z0-9~-]|=[0-9A-F]{2}){1,40}", fullmatch=True) | texts)
def test_a_token_is_read_as_one_symbol_or_not_at_all(token: str) -> None:
    try:
        symbol = token_symbol(token)
    except Malformed:
        return
    assert subject("md.trade", venue="paper", symbol=symbol).text == f"md.trade.paper.{token}"


@given(
    texts
    | st.lists(
        st.sampled_from(["md", "trade", "order", "intent", "cred", "*", ">", "", "a", "XRP-ETH", "$JS"]), max_size=6
    ).map(".".join)
)
def test_any_text_is_a_subject_that_prints_as_itself_or_malformed(text: str) -> None:
    try:
        parsed = parse_subject(text)
    except Malformed:
        return
    assert parsed.text == text
    assert not set(text) & set("*> \t\r\n")
    assert matches(parsed.text, text)


@given(st.sampled_from([s for _, s, _ in samples()]).map(str.encode).flatmap(lambda s: mutated([s])))
def test_a_damaged_subject_is_another_subject_or_malformed(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    readable(lambda: parse_subject(text), Malformed)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize(
    "token", ["*", ">", "", "a.b", "a b", "a\n", "A", "-a", "a-", "a" * 49, "é", "{{name()}}", "\x00"]
)
def test_no_name_is_a_wildcard_a_separator_or_a_template(position: int, token: str) -> None:
    fields = dict(zip(("strategy", "venue", "symbol"), ("alpha", "paper", "XRP/ETH"), strict=True))
    name = list(fields)[position]
    if name == "symbol":
        made = readable(lambda: subject("signal", **{**fields, name: token}), Malformed)
        assert made == bool(token)
        if made:
            assert len(subject("signal", **{**fields, name: token}).text.split(".")) == 4
    else:
        assert not readable(lambda: subject("signal", **{**fields, name: token}), Malformed)


# -- messages -------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(EVENTS)), st.binary(max_size=200) | msgpack | mutated([d for _, d in ENCODED]))
def test_event_decoding_is_canonical_or_malformed(kind: str, data: bytes) -> None:
    try:
        events = decode_events(kind, data)
    except Malformed:
        return
    assert encode_events(kind, events) == data


@given(st.integers(0, len(ENCODED) - 1), st.data())
def test_a_damaged_event_is_another_event_or_malformed(number: int, data: st.DataObject) -> None:
    where, raw = ENCODED[number]
    kind = parse_subject(where).kind
    damaged = data.draw(mutated([raw]))
    if readable(lambda: decode_events(kind, damaged), Malformed):
        assert encode_events(kind, decode_events(kind, damaged)) == damaged


@given(st.binary(max_size=200) | msgpack.map(PREFIX.__add__) | mutated([field(p, "statement") for _, p in FLUSH]))
def test_a_statement_is_canonical_or_malformed(raw: bytes) -> None:
    try:
        statement = decode_statement(raw)
    except Malformed:
        return
    assert encode_statement(statement) == raw


@given(
    st.sampled_from([s for s, _ in FLUSH]) | texts, st.binary(max_size=300) | msgpack | mutated([p for _, p in FLUSH])
)
def test_opening_anything_but_a_sealed_message_is_refused(where: str, payload: bytes) -> None:
    if readable(lambda: VERIFIER.open(where, "MARKET", payload)):
        assert (where, payload) in FLUSH


@given(st.sampled_from(["version", "credential", "statement", "signature", "index", "path", "events"]), msgpack_values)
def test_any_value_in_any_field_of_a_payload_is_refused_or_changes_nothing(name: str, value: Any) -> None:
    where, payload = FLUSH[0]
    changed = forge(payload, **{} if name == "statement" else {name: value})
    if name == "statement":
        changed = forge(payload, statement=value if isinstance(value, bytes) else None)
    if readable(lambda: VERIFIER.open(where, "MARKET", changed)):
        assert changed == payload


@given(st.sampled_from(sorted(EVENTS)), msgpack | st.binary(max_size=100))
def test_whatever_a_component_seals_is_read_or_refused(kind: str, data: bytes) -> None:
    component, where, _ = next(s for s in samples() if parse_subject(s[1]).kind == kind)
    payload = sealed(component, (where, data))[0][1]
    readable(lambda: VERIFIER.open(where, parse_subject(where).stream, payload))


@given(msgpack_values.filter(lambda v: not isinstance(v, bytes)), st.integers(0, 10))
def test_whatever_a_session_states_is_refused_or_true(value: Any, position: int) -> None:
    where, payload = sealed("market-data", encoded(*samples()[0][1:]))[0]
    name = list(msgspec.structs.fields(decode_statement(field(payload, "statement"))))[position].name
    changed = forge(payload, statement={name: value}, signer=session_key("market-data"))
    if readable(lambda: VERIFIER.open(where, "MARKET", changed)):
        assert name in {"time", "flags"} or changed == payload


# -- documents and tokens -------------------------------------------------------------------------


@given(texts | mutated([ROOT_NOTE.encode()]).map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_a_note_opens_as_it_was_signed_or_is_refused(note: str) -> None:
    if readable(lambda: open_note(note, KEYS)):
        assert open_note(note, KEYS)[0] == ROOT_NOTE.rpartition("\n\n")[0] + "\n"


@given(texts, st.text(max_size=30))
def test_a_text_is_signed_and_opened_again_or_refused(body: str, more: str) -> None:
    for text in (body + "\n", body + "\n\n" + more + "\n", body):
        try:
            note = sign_note(text, ("operator-root", PINNED))
        except Malformed:
            continue
        assert open_note(note, KEYS) == (text, frozenset(("operator-root",)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(msgspec.json.decode(msgspec.json.encode(ROOT)))), json_values)
def test_a_trust_root_signed_with_anything_in_it_is_read_or_refused(name: str, value: Any) -> None:
    document = json.loads(ROOT_NOTE.split("\n\n— ")[0])
    text = json.dumps({**document, name: value}, indent=2, ensure_ascii=False) + "\n"
    note = sign_note(text, ("operator-root", PINNED))
    if readable(lambda: open_trust_roots([note], PINNED.public)):
        assert sign_document(open_trust_roots([note], PINNED.public)[0], ("operator-root", PINNED)) == note


@given(json_values.map(json.dumps))
def test_any_signed_json_is_no_lease_and_no_rearming(text: str) -> None:
    note = sign_note(text + "\n", ("operator", key("operator")))
    assert not readable(lambda: open_arm_lease(note, ROOT, "execution", NOW))
    assert not readable(lambda: open_rearm(note, ROOT))


@given(texts | mutated([TOKEN.encode()]).map(lambda b: b.decode("latin-1")))
def test_a_damaged_credential_is_refused(text: str) -> None:
    accepted = (
        readable(lambda: nats_jwt.decode_jwt(text)),
        readable(lambda: nats_jwt.decode_credential(text)),
        readable(lambda: open_credential(text, ROOT)),
    )
    assert accepted == (text == TOKEN,) * 3


@given(st.sampled_from(["iat", "exp", "iss", "sub", "name", "jti", "nats"]), json_values)
def test_a_credential_signed_with_anything_in_it_is_read_or_refused(name: str, value: Any) -> None:
    role = key("role market-data")
    claims = {**json.loads(nats_jwt._unb64(TOKEN.split(".")[1], "claims")), name: value}
    body = nats_jwt._b64(json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    signed = f"{nats_jwt._HEADER}.{body}"
    text = f"{signed}.{nats_jwt._b64(role.sign(signed.encode()))}"
    if readable(lambda: open_credential(text, ROOT)):
        opened = open_credential(text, ROOT)
        assert opened.component == "market-data"
        assert opened.expires_at - opened.issued_at <= ROOT.component("market-data").lifetime * 1_000_000_000


# -- requests over sockets ------------------------------------------------------------------------

REQUEST = msgspec.json.encode(enrolment.SessionRequest(boot="00", component="audit", proof="00", session_key="00"))
FRAMES: list[bytes] = [
    signing.encode_frame(frame)[4:]
    for frame in (
        signing.SignOrder(
            id=1,
            decision_id=bytes(16),
            subject=XRP,
            payload=b"x" * 40,
            intent=b"y" * 40,
            credential="a.b.c",
            signature=bytes(64),
        ),
        signing.SignCancel(id=2, venue="paper", symbol="XRP/ETH", client_order_id="a"),
        signing.SignCancelAll(id=3, venue="paper", symbol="XRP/ETH"),
        signing.SignQuery(id=4, venue="paper", symbol="XRP/ETH", client_order_id="a"),
        signing.SignOpenOrders(id=5, venue="paper", symbol="XRP/ETH"),
        signing.StatusRequest(id=6),
        signing.Signed(id=7, method="POST", url="https://x/", headers=(("a", "b"),), body="c", signed_at=NOW),
        signing.Refused(id=8, code="X", text="y"),
        signing.Status(id=9, component="custody", boot=bytes(16), trust_root=1, used=0, public_key=bytes(32)),
    )
]


@given(st.binary(max_size=200) | json_values.map(json.dumps).map(str.encode) | mutated([REQUEST]))
def test_a_session_request_is_read_or_malformed(body: bytes) -> None:
    readable(lambda: enrolment.decode_request(body), Malformed)


@given(texts, st.integers(0, 40))
def test_hex_is_exact_or_malformed(text: str, length: int) -> None:
    try:
        raw = enrolment.hex_bytes(text, length, "x")
    except Malformed:
        return
    assert raw.hex() == text
    assert len(raw) == length


@given(st.binary(max_size=200) | msgpack | mutated(FRAMES))
def test_a_frame_is_canonical_or_malformed(data: bytes) -> None:
    for decode in (signing.decode_request, signing.decode_reply):
        try:
            frame = decode(data)
        except Malformed:
            continue
        assert signing.encode_frame(frame)[4:] == data


@pytest.mark.parametrize("data", FRAMES, ids=range(len(FRAMES)))
def test_each_frame_is_read_as_request_or_as_reply_never_both(data: bytes) -> None:
    as_request = readable(lambda: signing.decode_request(data), Malformed)
    as_reply = readable(lambda: signing.decode_reply(data), Malformed)
    assert as_request != as_reply


@given(st.sampled_from(FRAMES), st.integers(0, 60))
def test_a_frame_cut_short_is_malformed(data: bytes, end: int) -> None:
    if end < len(data):
        assert not readable(lambda: signing.decode_request(data[:end]), Malformed)
        assert not readable(lambda: signing.decode_reply(data[:end]), Malformed)


def test_text_that_is_not_utf8_is_malformed_everywhere() -> None:
    """msgspec raises these unwrapped, as `UnicodeDecodeError`."""
    bad = b"\xa3\xff\xfe\xfd"
    notice = b"\x91\x98\xaeguard.notice/1\xc4\x10" + bytes(16) + b"\x00\x90\x90" + bad + b"\xa0\xc4\x00"
    assert not readable(lambda: decode_events("guard", notice), Malformed)
    assert readable(lambda: decode_events("guard", notice.replace(bad, b"\xa3abc")), Malformed)
    assert not readable(lambda: decode_events("guard", b"\x91\x98" + bad), Malformed)
    assert not readable(lambda: decode_statement(PREFIX + b"\x9b" + bad), Malformed)
    opened = lambda: VERIFIER.open(XRP, "MARKET", b"\x97\x01" + bad + b"\xc4\x00\xc4\x00\x00\x90\xc4\x00")  # noqa: E731
    assert not readable(opened, Malformed)
    assert not readable(lambda: signing.decode_request(b"\x95" + bad), Malformed)
    assert not readable(lambda: signing.decode_request(b"\x95\xa6cancel\x01" + bad + b"\xa0\xa0"), Malformed)
    assert not readable(lambda: enrolment.decode_request(b'{"\xff":""}'), Malformed)


@given(texts)
def test_an_id_is_read_as_it_is_written_or_malformed(text: str) -> None:
    if readable(lambda: ids.id_bytes(text), Malformed):
        assert ids.id_text(ids.id_bytes(text)) == text.lower()


@given(st.binary(min_size=16, max_size=16))
def test_ids_and_their_text_are_a_bijection(raw: bytes) -> None:
    assert ids.id_bytes(ids.id_text(raw)) == raw


def test_the_credential_of_the_tests_is_good() -> None:
    assert credential("market-data")[0].text == TOKEN
