"""The trust root's records and the operator's leases and re-armings; sequences of roots are in the vectors."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.leases import LeaseBook
from tallystick.schemas.trust import (
    HOUR_NS,
    ArmLease,
    Rearm,
    TrustRoot,
    open_arm_lease,
    open_rearm,
    open_trust_roots,
    require_current,
    sign_document,
)
from tests.support.world import NOW, key, trust_root

ROOT = trust_root()
OPERATOR = ("operator", key("operator"))
LEASE = ArmLease(deployment="test", component="execution", venues=("paper",), start=NOW, until=NOW + 12 * HOUR_NS)


def changed(**fields: Any) -> TrustRoot:
    return msgspec.convert({**msgspec.structs.asdict(ROOT), **fields}, TrustRoot)


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
    assert not book.holds(venue, LEASE.start - 1)
    assert book.holds(venue, LEASE.start)
    assert not book.holds(venue, LEASE.until)


def test_a_lease_of_another_deployment_or_signer_arms_nothing() -> None:
    other = sign_document(msgspec.structs.replace(LEASE, deployment="other"), OPERATOR)
    assert refusal(other) == "ARM_LEASE_SCOPE"
    assert refusal(sign_document(LEASE, ("operator", key("thief")))) == "NOTE_UNSIGNED"
    assert refusal(sign_document(LEASE, ("operator-root", key("operator-root")))) == "NOTE_UNSIGNED"


@pytest.mark.parametrize("hours", [0, -1, 13])
def test_a_lease_lasts_twelve_hours_at_the_most(hours: int) -> None:
    with pytest.raises(Malformed, match="ARM_LEASE"):
        ArmLease(deployment="test", component="execution", venues=(), start=NOW, until=NOW + hours * HOUR_NS)


def test_one_signed_document_does_not_pass_for_another() -> None:
    rearm = Rearm(deployment="test", scope="all", since=NOW)
    assert open_rearm(sign_document(rearm, OPERATOR), ROOT) == rearm
    assert refusal(sign_document(rearm, OPERATOR)) == "DOCUMENT"
    with pytest.raises(Malformed, match="DOCUMENT"):
        open_rearm(sign_document(LEASE, OPERATOR), ROOT)


def test_a_rearming_of_another_deployment_closes_nothing() -> None:
    with pytest.raises(Unverified, match="REARM_SCOPE"):
        open_rearm(sign_document(Rearm(deployment="other", scope="all", since=NOW), OPERATOR), ROOT)
