"""The trust root's records and the operator's leases and re-armings; sequences of roots are in the vectors."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallystick.cli.operate import narrowed
from tallystick.schemas.arming import open_arm_lease
from tallystick.schemas.errors import ConfigError, Malformed, TallystickError, Unverified
from tallystick.schemas.leases import LeaseBook
from tallystick.schemas.methods import CERTIFICATE, ApiKey, HardwareToken, Jwk, ServiceAccount
from tallystick.schemas.note import sign_note
from tallystick.schemas.trust import (
    HOUR_NS,
    Rearm,
    TrustRoot,
    open_rearm,
    open_trust_roots,
    require_current,
    sign_document,
)
from tests.support.world import NOW, key, lease, trust_root

ROOT = trust_root()
OPERATOR = ("operator", key("operator"))
JWK = Jwk(kty="OKP", crv="Ed25519", kid="one", x="AAAA")
LEASE = lease(ROOT, NOW, NOW + 12 * HOUR_NS)


def changed(**fields: Any) -> TrustRoot:
    there = {name: value for name, value in msgspec.structs.asdict(ROOT).items() if value is not msgspec.UNSET}
    return msgspec.convert({**there, **fields}, TrustRoot)


def test_a_trust_root_comes_back_as_it_was_signed() -> None:
    root = key("operator-root")
    assert open_trust_roots([sign_document(ROOT, ("operator-root", root))], root.public) == (ROOT,)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"number": 0}, "TRUST_ROOT"),
        ({"issued": NOW, "expires": NOW}, "TRUST_ROOT"),
        ({"issued": -1}, "TRUST_ROOT"),
        ({"deployment": "Test"}, "NAME"),
        ({"operator": "00"}, "PUBLIC_KEY"),
        ({"operator": "g" * 64}, "PUBLIC_KEY"),
        ({"operator_root": key("operator-root").public.hex().upper()}, "PUBLIC_KEY"),
        ({"components": {"a.b": next(iter(ROOT.components.values()))}}, "NAME"),
        ({"venues": {"*": next(iter(ROOT.venues.values()))}}, "NAME"),
        ({"components": dict.fromkeys(("a", "b"), ROOT.component("audit"))}, "TRUST_ROOT"),
    ],
)
def test_a_trust_root_that_makes_no_sense_is_never_made(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed, match=f"^{code}: "):
        changed(**fields)


@pytest.mark.parametrize("pattern", ["", ">", "*", "*.trade.>", "orders.>", "$JS.API.>", "order.intents.*", "_INBOX.>"])
def test_nobody_is_trusted_with_subjects_outside_the_system(pattern: str) -> None:
    record = msgspec.structs.replace(ROOT.component("audit"), publishes=(pattern,))
    with pytest.raises(Malformed, match="TRUST_PATTERN"):
        changed(components={"audit": record})


def test_a_trust_root_holds_from_issue_to_expiry() -> None:
    require_current(ROOT, ROOT.issued)
    require_current(ROOT, ROOT.expires - 1)
    for now in (ROOT.issued - 1, ROOT.expires):
        with pytest.raises(Unverified, match="TRUST_ROOT_EXPIRED"):
            require_current(ROOT, now)


def test_what_the_operator_did_not_sign_is_unknown() -> None:
    with pytest.raises(Unverified, match="COMPONENT_UNKNOWN"):
        ROOT.component("stranger")
    with pytest.raises(Unverified, match="COMPONENT_UNKNOWN"):
        ROOT.require_scope("stranger", "md.trade.paper.XRP-ETH")
    with pytest.raises(Unverified, match="SCOPE"):
        ROOT.require_scope("audit", "order.decision.alpha.paper.XRP-ETH")
    for venue, symbol in (("paper", "DOGE/ETH"), ("other", "XRP/ETH")):
        with pytest.raises(Unverified, match="UNKNOWN_INSTRUMENT"):
            ROOT.instrument(venue, symbol)
    assert ROOT.instrument("paper", "XRP/ETH").venue_symbol == "XRPETH"


def test_every_field_of_an_instrument_is_in_its_digest() -> None:
    record = ROOT.instrument("paper", "XRP/ETH")
    digests = {record.digest}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        other = value + Decimal(1) if isinstance(value, Decimal) else value + "x"
        digests.add(msgspec.structs.replace(record, **{field.name: other}).digest)
    assert len(digests) == 1 + len(msgspec.structs.fields(record))


# -- leases and re-arming -------------------------------------------------------------------------


def refusal(note: str, now: int = NOW, component: str = "execution", root: TrustRoot = ROOT) -> str:
    with pytest.raises(TallystickError) as caught:
        open_arm_lease(note, root, component, now)
    return caught.value.code


def test_a_lease_arms_its_component_from_start_to_end() -> None:
    note = sign_document(LEASE, OPERATOR)
    assert open_arm_lease(note, ROOT, "execution", NOW) == LEASE
    assert open_arm_lease(note, ROOT, "execution", LEASE.until - 1) == LEASE
    assert refusal(note, NOW - 1) == "LEASE_EARLY"
    assert refusal(note, LEASE.until) == "LEASE_EXPIRED"
    assert refusal(note, component="gateway") == "ARM_LEASE_SCOPE"


def test_a_lease_that_begins_in_a_moment_holds_when_that_has_come() -> None:
    """A receiver whose clock was a little behind forgot it without a word."""
    book = LeaseBook(ROOT)
    venue = LEASE.venues[0]
    book.learn("execution", sign_document(LEASE, OPERATOR), LEASE.start - 1)
    assert book.holding(venue, LEASE.start - 1) is None
    assert book.holding(venue, LEASE.start) == LEASE
    assert book.holding(venue, LEASE.until) is None


def test_a_wider_lease_that_is_played_back_takes_nothing_from_the_operators_latest_word() -> None:
    cap = ROOT.caps[0]
    narrow = msgspec.structs.replace(LEASE, caps=(cap,), start=LEASE.start + 1)
    book = LeaseBook(ROOT)
    for note in (sign_document(narrow, OPERATOR), sign_document(LEASE, OPERATOR)):
        book.learn("execution", note, LEASE.start)
    assert book.holding("paper", LEASE.start) == LEASE
    assert book.holding("paper", LEASE.start + 1) == narrow


def test_a_lease_for_another_token_than_the_trust_roots_arms_nothing() -> None:
    for other in (key("thief").public.hex(), ""):
        note = sign_document(msgspec.structs.replace(LEASE, hardware_key=other), OPERATOR)
        assert refusal(note) == "LEASE_HARDWARE_KEY"
        with pytest.raises(Unverified, match="LEASE_HARDWARE_KEY"):
            LeaseBook(ROOT).learn("execution", note, NOW)
    # Nor where the operator has named another token since.
    record = ROOT.component("execution")
    other_key = HardwareToken(algorithm="ed25519", key=key("next token").public.hex())
    components = ROOT.components | {"execution": msgspec.structs.replace(record, method=other_key)}
    after = msgspec.structs.replace(ROOT, components=components)
    assert refusal(sign_document(LEASE, OPERATOR), root=after) == "LEASE_HARDWARE_KEY"


@pytest.mark.parametrize("name", ["max_order", "max_hourly"])
def test_a_lease_gives_no_more_than_the_trust_root(name: str) -> None:
    wide = tuple(msgspec.structs.replace(cap, **{name: getattr(cap, name) + 1}) for cap in ROOT.caps[:1])
    assert refusal(sign_document(msgspec.structs.replace(LEASE, caps=wide), OPERATOR)) == "LEASE_CAPS"
    unknown = msgspec.structs.replace(ROOT.caps[0], asset="DOGE")
    assert refusal(sign_document(msgspec.structs.replace(LEASE, caps=(unknown,)), OPERATOR)) == "LEASE_CAPS"
    twice = msgspec.structs.replace(LEASE, caps=(ROOT.caps[0], ROOT.caps[0]))
    assert refusal(sign_document(twice, OPERATOR)) == "LEASE_CAPS"


def test_a_lease_of_a_kind_of_credential_that_is_not_known_is_refused() -> None:
    text = sign_document(LEASE, OPERATOR).partition("\n\n")[0] + "\n"
    assert '"token-key"' in text
    assert refusal(sign_note(text.replace('"token-key"', '"webauthn"'), OPERATOR)) == "DOCUMENT"
    assert refusal(sign_note(text.replace("tallystick-arm/2", "tallystick-arm/1"), OPERATOR)) == "DOCUMENT"


# -- how a component proves itself ----------------------------------------------------------------


def test_a_method_is_written_in_one_way_and_an_unknown_one_is_refused() -> None:
    note = sign_document(ROOT, ("operator-root", key("operator-root")))
    (read,) = open_trust_roots((note,), key("operator-root").public)
    assert read.component("gateway").method is CERTIFICATE
    assert read.hardware_key("execution") == key("hardware").public.hex()
    assert read.hardware_key("gateway") == read.hardware_key("stranger") == ""
    text = note.partition("\n\n")[0] + "\n"
    for method in ('"certificate"', '"password"'):
        changed = text.replace(
            '"lifetime": 900,\n', f'"lifetime": 900,\n      "method": {{\n        "kind": {method}\n      }},\n', 1
        )
        assert changed != text
        with pytest.raises(Malformed, match="DOCUMENT"):
            open_trust_roots(
                (sign_note(changed, ("operator-root", key("operator-root"))),), key("operator-root").public
            )


@pytest.mark.parametrize(
    "made",
    [
        lambda: HardwareToken(algorithm="ed25519", key="AB" * 32),
        lambda: HardwareToken(algorithm="ed25519", key="ab" * 31),
        lambda: HardwareToken(algorithm="p256", key="02" + "ab" * 64),
        lambda: ApiKey(first="ab"),
        lambda: account(keys=()),
        lambda: account(url="https://issuer/keys", ca="PEM"),
        lambda: account(keys=(), url="http://issuer/keys", ca="PEM"),
        lambda: account(keys=(), url="https://issuer/keys"),
        lambda: account(keys=(JWK, JWK)),
    ],
)
def test_a_method_that_proves_nothing_is_no_method(made: Callable[[], object]) -> None:
    with pytest.raises(Malformed, match="METHOD_DOCUMENT"):
        made()


def account(**changes: Any) -> ServiceAccount:
    return ServiceAccount(**{"issuer": "i", "audience": "a", "subject": "s", "single": True, "keys": (JWK,), **changes})


def test_a_lease_of_another_deployment_or_signer_arms_nothing() -> None:
    other = sign_document(msgspec.structs.replace(LEASE, deployment="other"), OPERATOR)
    assert refusal(other) == "ARM_LEASE_SCOPE"
    assert refusal(sign_document(LEASE, ("operator", key("thief")))) == "NOTE_UNSIGNED"
    assert refusal(sign_document(LEASE, ("operator-root", key("operator-root")))) == "NOTE_UNSIGNED"


@pytest.mark.parametrize("hours", [0, -1, 13])
def test_a_lease_lasts_twelve_hours_at_the_most(hours: int) -> None:
    with pytest.raises(Malformed, match="ARM_LEASE"):
        lease(ROOT, NOW, NOW + hours * HOUR_NS)


def test_one_signed_document_does_not_pass_for_another() -> None:
    rearm = Rearm(deployment="test", scope="all", since=NOW)
    assert open_rearm(sign_document(rearm, OPERATOR), ROOT) == rearm
    assert refusal(sign_document(rearm, OPERATOR)) == "DOCUMENT"
    with pytest.raises(Malformed, match="DOCUMENT"):
        open_rearm(sign_document(LEASE, OPERATOR), ROOT)


def test_a_rearming_of_another_deployment_closes_nothing() -> None:
    with pytest.raises(Unverified, match="REARM_SCOPE"):
        open_rearm(sign_document(Rearm(deployment="other", scope="all", since=NOW), OPERATOR), ROOT)


def test_a_lease_is_made_narrower_and_never_wider_than_the_operators_caps() -> None:
    made = {cap.asset: cap for cap in narrowed(ROOT.caps, ("ETH=0.5/10",))}
    assert (made["ETH"].max_order, made["ETH"].max_hourly) == (Decimal("0.5"), Decimal(10))
    assert made["XRP"] in ROOT.caps
    for text in (
        "ETH=6/10",
        "ETH=1/501",
        "DOGE=1/1",
        "ETH",
        "ETH=1",
        "ETH=x/1",
        "ETH=-1/1",
        "ETH=NaN/1",
        "=1/1",
        "ETH=0/0",
    ):
        with pytest.raises(ConfigError, match="ARM_CAP"):
            narrowed(ROOT.caps, (text,))
