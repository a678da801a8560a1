"""Whoever carries a sealed message changes it: every byte, every field, every place, with and without keys."""

from __future__ import annotations

import hashlib
import itertools

import msgspec
import pytest

from tallystick.schemas import nats_jwt
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.registry import MAX_EVENTS_BYTES, encode_events
from tallystick.schemas.seal import (
    GENESIS,
    MAX_FLUSH,
    PREFIX,
    STATEMENT_CACHE,
    ChainWriter,
    Statement,
    Verifier,
    decode_statement,
    encode_statement,
    message_leaf,
)
from tallystick.schemas.subjects import parse_subject
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

ROOT = trust_root()
XRP, BTC = "md.trade.paper.XRP-ETH", "md.trade.paper.BTC-USDT"
TRADE = samples()[0][2]
GOOD = sealed("market-data", encoded(XRP, TRADE))[0][1]
SESSION = session_key("market-data")


def refusal(payload: bytes, subject: str = XRP, stream: str = "MARKET", verifier: Verifier | None = None) -> str:
    with pytest.raises(TallystickError) as caught:
        (verifier or Verifier(ROOT)).open(subject, stream, payload)
    assert isinstance(caught.value, Malformed | Unverified)
    return caught.value.code


def test_what_was_sealed_is_what_is_opened() -> None:
    verifier = Verifier(ROOT)
    for component, subject, event in samples():
        stream = parse_subject(subject).stream
        (_, payload), *_ = sealed(component, encoded(subject, event))
        verified = verifier.open(subject, stream, payload)
        assert verified.events == [event]
        assert verified.credential.component == component
        assert verified.payload == payload
        assert verified.leaf == message_leaf(subject, field(payload, "events"))


def test_flipping_any_bit_of_a_message_is_refused() -> None:
    verifier = Verifier(ROOT)
    verifier.open(XRP, "MARKET", GOOD)
    for position in range(len(GOOD)):
        for bit in (0, 3, 7):
            changed = GOOD[:position] + bytes((GOOD[position] ^ 1 << bit,)) + GOOD[position + 1 :]
            refusal(changed, verifier=verifier)


def test_cutting_a_message_anywhere_is_refused() -> None:
    for end in range(len(GOOD)):
        assert refusal(GOOD[:end]) == "PAYLOAD"


def test_dropping_or_doubling_any_byte_is_refused() -> None:
    verifier = Verifier(ROOT)
    for i in range(len(GOOD)):
        refusal(GOOD[:i] + GOOD[i + 1 :], verifier=verifier)
        refusal(GOOD[: i + 1] + GOOD[i:], verifier=verifier)


OTHER_VALUES: dict[str, object] = {
    "deployment": "other",
    "component": "execution",
    "boot": seed("another boot")[:16],
    "stream": "SIGNALS",
    "seq": 1,
    "prev": seed("prev"),
    "size": 2,
    "root": seed("root"),
    "time": NOW + 1,
    "flags": 1,
    "credential": seed("credential"),
}


@pytest.mark.parametrize("name", Statement.__struct_fields__)
def test_a_statement_field_changed_by_a_carrier_is_refused(name: str) -> None:
    # seq and prev belong together: one alone is not even well-formed.
    changed = {n: OTHER_VALUES[n] for n in ({"seq", "prev"} if name in {"seq", "prev"} else {name})}
    expected = {
        "deployment": "DEPLOYMENT",
        "component": "STATEMENT_CREDENTIAL",
        "boot": "STATEMENT_CREDENTIAL",
        "credential": "STATEMENT_CREDENTIAL",
    }
    assert refusal(forge(GOOD, statement=changed)) == expected.get(name, "SIGNATURE")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("deployment", "DEPLOYMENT"),
        ("component", "STATEMENT_CREDENTIAL"),
        ("boot", "STATEMENT_CREDENTIAL"),
        ("stream", "STATEMENT_STREAM"),
        ("seq", "STATEMENT_PREV"),
        ("prev", "STATEMENT_PREV"),
        ("size", "MERKLE_PATH"),
        ("root", "MERKLE_ROOT"),
        ("credential", "STATEMENT_CREDENTIAL"),
    ],
)
def test_a_statement_field_changed_by_the_session_itself_is_refused(name: str, code: str) -> None:
    assert refusal(forge(GOOD, statement={name: OTHER_VALUES[name]}, signer=SESSION)) == code


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"version": 0}, "PAYLOAD_VERSION"),
        ({"version": 2}, "PAYLOAD_VERSION"),
        ({"version": "1"}, "PAYLOAD"),
        ({"version": 1.0}, "PAYLOAD"),
        ({"credential": ""}, "JWT_PARTS"),
        ({"credential": None}, "PAYLOAD"),
        ({"statement": b""}, "STATEMENT"),
        ({"statement": PREFIX}, "STATEMENT"),
        ({"signature": b""}, "SIGNATURE"),
        ({"signature": bytes(64)}, "SIGNATURE"),
        ({"signature": bytes(65)}, "SIGNATURE"),
        ({"index": 1}, "MERKLE_INDEX"),
        ({"index": -1}, "MERKLE_INDEX"),
        ({"index": 2**63}, "MERKLE_INDEX"),
        ({"index": None}, "PAYLOAD"),
        ({"path": [bytes(32)]}, "MERKLE_PATH"),
        ({"path": [[]]}, "PAYLOAD"),
        ({"path": {}}, "PAYLOAD"),
        ({"events": b""}, "MERKLE_ROOT"),
        ({"events": b"\x90"}, "MERKLE_ROOT"),
    ],
    ids=str,
)
def test_a_payload_field_changed_is_refused(fields: dict[str, object], code: str) -> None:
    assert refusal(forge(GOOD, **fields)) == code  # type: ignore[arg-type]


def test_a_path_works_in_no_other_order_and_at_no_other_index() -> None:
    for subject, payload in flush_of_five():
        path, index = field(payload, "path"), field(payload, "index")
        Verifier(ROOT).open(subject, "MARKET", payload)
        for order in itertools.permutations(path):
            if list(order) != path:
                assert refusal(forge(payload, path=order), subject) == "MERKLE_ROOT"
        for other in set(range(5)) - {index}:
            assert refusal(forge(payload, index=other), subject) in {"MERKLE_ROOT", "MERKLE_PATH"}


def test_messages_of_one_flush_do_not_trade_places() -> None:
    flush = flush_of_five()
    for (subject, payload), (_, other) in itertools.permutations(flush, 2):
        if field(payload, "events") != field(other, "events"):
            assert refusal(forge(payload, events=field(other, "events")), subject) == "MERKLE_ROOT"
        assert refusal(other, subject) == "MERKLE_ROOT"


def test_an_inner_node_of_the_tree_is_no_message() -> None:
    """The second preimage of plain Merkle trees: two hashes presented as a leaf."""
    flush = flush_of_five()
    left, right = (message_leaf(s, field(p, "events")) for s, p in flush[:2])
    path = field(flush[0][1], "path")[1:]
    assert refusal(forge(flush[0][1], events=left + right, path=path, index=0), XRP) in {"MERKLE_PATH", "MERKLE_ROOT"}


def test_no_subject_and_events_share_a_leaf_with_others() -> None:
    # Without the length before the subject, bytes could move from one to the other.
    assert message_leaf("md.trade.a.B", b"C\x90") != message_leaf("md.trade.a.BC", b"\x90")


@pytest.mark.parametrize("component", ["strategy-alpha", "execution", "gateway", "portfolio", "audit", "streams"])
def test_nobody_but_market_data_speaks_of_the_market(component: str) -> None:
    (_, payload), *_ = sealed(component, encoded(XRP, TRADE))
    assert refusal(payload) == "SCOPE"


def test_every_component_is_refused_on_every_subject_that_is_not_its_own() -> None:
    verifier = Verifier(ROOT)
    for _, subject, event in samples():
        for component, record in ROOT.components.items():
            payload = sealed(component, encoded(subject, event))[0][1]
            stream = parse_subject(subject).stream
            if any(_covers(pattern, subject) for pattern in record.publishes):
                verifier.open(subject, stream, payload)
            else:
                assert refusal(payload, subject, stream, verifier) == "SCOPE"


def _covers(pattern: str, subject: str) -> bool:
    want, have = pattern.split("."), subject.split(".")
    return have[: len(want) - 1] == want[:-1] if want[-1] == ">" else have == want


def test_a_credential_swapped_for_another_session_of_the_component_is_refused() -> None:
    other, signer = other_session("market-data")
    renewed, renewed_key = credential("market-data", jti="2")
    for text in (other.text, renewed.text, credential("execution")[0].text):
        assert refusal(forge(GOOD, credential=text)) == "STATEMENT_CREDENTIAL"
    # Signing anew under the other session does not carry this boot's chain into it.
    assert (
        refusal(forge(GOOD, credential=other.text, statement={"credential": other.digest}, signer=signer))
        == "STATEMENT_CREDENTIAL"
    )
    # The same boot's renewed session may state what it likes, but only with its own key.
    named = {"credential": renewed.digest}
    assert refusal(forge(GOOD, credential=renewed.text, statement=named, signer=SESSION)) == "SIGNATURE"
    Verifier(ROOT).open(XRP, "MARKET", forge(GOOD, credential=renewed.text, statement=named, signer=renewed_key))


def test_a_role_key_of_another_component_mints_nothing() -> None:
    with pytest.raises(Unverified, match=r"^ROLE_KEY"):
        credential("market-data", role=key("role strategy-alpha"))


@pytest.mark.parametrize("offset", [-1_000_000_001, 300_000_000_001, -(10**15), 10**15])
def test_a_statement_outside_its_credentials_life_is_refused(offset: int) -> None:
    assert refusal(sealed("market-data", encoded(XRP, TRADE), time=NOW + offset)[0][1]) == "CREDENTIAL_EXPIRED"


def test_a_signature_seen_good_does_not_vouch_for_another_message() -> None:
    """The verifier remembers statements: only these very bytes, signature and credential included."""
    verifier = Verifier(ROOT)
    verifier.open(XRP, "MARKET", GOOD)
    wrong = bytes(64)
    assert refusal(forge(GOOD, signature=wrong), verifier=verifier) == "SIGNATURE"
    assert refusal(forge(GOOD, credential=other_session("market-data")[0].text), verifier=verifier) == (
        "STATEMENT_CREDENTIAL"
    )
    assert refusal(GOOD, BTC, verifier=verifier) == "MERKLE_ROOT"
    assert refusal(GOOD, stream="ORDERS", verifier=verifier) == "STREAM"
    flush = flush_of_five()
    verifier.open(flush[0][0], "MARKET", flush[0][1])
    assert refusal(forge(flush[1][1], events=b"\x90"), flush[1][0], verifier=verifier) == "MERKLE_ROOT"


def test_what_was_refused_once_is_refused_again() -> None:
    verifier = Verifier(ROOT)
    for _ in range(3):
        assert refusal(forge(GOOD, signature=bytes(64)), verifier=verifier) == "SIGNATURE"


def test_a_verifier_does_not_grow_with_history() -> None:
    verifier = Verifier(ROOT)
    chain = writer("market-data", "MARKET")
    message = encoded(XRP, TRADE)
    for i in range(STATEMENT_CACHE + 50):
        (subject, payload), *_ = chain.seal([message], NOW + i)
        verifier.open(subject, "MARKET", payload)
    assert len(verifier._statements) == STATEMENT_CACHE
    assert len(verifier._credentials) == 1


def test_a_verifier_of_another_deployment_refuses_everything() -> None:
    other = Verifier(trust_root(deployment="replay"))
    assert refusal(GOOD, verifier=other) == "DEPLOYMENT"


def test_a_message_above_the_limit_is_not_even_parsed() -> None:
    assert refusal(GOOD + bytes(1_000_000)) == "PAYLOAD_SIZE"


def test_events_above_the_limit_are_refused() -> None:
    data = bytes(MAX_EVENTS_BYTES + 1)
    assert refusal(sealed("market-data", (XRP, data))[0][1]) == "EVENTS_SIZE"
    one = encode_events("md.trade", [TRADE])[1:]
    assert refusal(sealed("market-data", (XRP, b"\xdc\x10\x01" + one * 4097))[0][1]) == "EVENTS_SIZE"


def test_deep_nesting_ends_in_a_refusal_not_in_a_crash() -> None:
    for data in (b"\x91" * 300_000, b"\x81\xa0" * 200_000):
        assert refusal(data) == "PAYLOAD"
        assert refusal(sealed("market-data", (XRP, data))[0][1]) == "EVENTS"
    assert refusal(forge(GOOD, statement=PREFIX + b"\x91" * 1000)) == "STATEMENT"


def test_a_header_that_promises_more_than_there_is_allocates_nothing() -> None:
    for lie in (b"\xdd\xff\xff\xff\xff", b"\x97\x01\xdb\xff\xff\xff\xff", b"\x97\x01\xa0\xc6\xff\xff\xff\xff"):
        assert refusal(lie) == "PAYLOAD"


# -- the key that seals is asked for other signatures ------------------------------------------------


def test_a_broker_cannot_have_a_statement_signed_as_its_login_nonce() -> None:
    statement = field(GOOD, "statement").decode("latin-1")
    for nonce in (statement, PREFIX.decode(), statement[:40], "tallystick seal v1"):
        with pytest.raises(Unverified, match=r"^LOGIN_NONCE"):
            nats_jwt.sign_nonce(SESSION, nonce)


def test_a_signed_nonce_is_no_statement() -> None:
    nonce = "Zm9vYmFyYmF6cXV4"
    signature = SESSION.sign(nonce.encode())
    assert refusal(forge(GOOD, statement=nonce.encode(), signature=signature)) == "STATEMENT"


def test_a_session_request_proof_is_no_statement() -> None:
    with pytest.raises(Malformed, match=r"^STATEMENT"):
        decode_statement(b"tallystick session request v1\x00" + msgspec.msgpack.encode(["test"]))


# -- the writer ------------------------------------------------------------------------------------------


def test_a_writer_seals_only_for_its_own_key_and_stream() -> None:
    with pytest.raises(Malformed, match=r"^SESSION_KEY"):
        ChainWriter(credential("market-data")[0], key("thief"), "MARKET")
    with pytest.raises(Malformed, match=r"^FLUSH_STREAM"):
        writer("market-data", "MARKET").seal([encoded("signal.alpha.paper.XRP-ETH", samples()[3][2])], NOW)
    for count in (0, MAX_FLUSH + 1):
        with pytest.raises(Malformed, match=r"^FLUSH_SIZE"):
            writer("market-data", "MARKET").seal([encoded(XRP, TRADE)] * count, NOW)


def test_the_largest_flush_verifies_message_by_message() -> None:
    flush = writer("market-data", "MARKET").seal([encoded(XRP, TRADE)] * MAX_FLUSH, NOW)
    verifier = Verifier(ROOT)
    for index in (0, 1, 2047, 2048, MAX_FLUSH - 1):
        assert verifier.open(XRP, "MARKET", flush[index][1]).index == index


def test_a_closed_chain_seals_no_more() -> None:
    chain = writer("market-data", "MARKET")
    chain.seal([encoded(XRP)], NOW, close=True)
    with pytest.raises(Malformed, match=r"^CHAIN_CLOSED"):
        chain.seal([encoded(XRP, TRADE)], NOW)


def test_a_message_too_large_leaves_the_chain_where_it_was() -> None:
    chain = writer("market-data", "MARKET")
    with pytest.raises(Malformed, match=r"^PAYLOAD_SIZE"):
        chain.seal([(XRP, bytes(1_000_000))], NOW)
    assert (chain.seq, chain.prev) == (0, GENESIS)


def test_each_statement_names_the_one_before() -> None:
    chain, prev = writer("market-data", "MARKET"), bytes(32)
    for seq in range(4):
        statement = decode_statement(field(chain.seal([encoded(XRP, TRADE)], NOW + seq)[0][1], "statement"))
        assert (statement.seq, statement.prev) == (seq, prev)
        prev = hashlib.sha256(encode_statement(statement)).digest()
