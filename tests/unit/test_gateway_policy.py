"""Policies: type-checked at start, default deny, whatever errs denies."""

from __future__ import annotations

import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components.gateway.policy import MAX_LONG, Policy, _order_context, units
from tallystick.components.gateway.risk import Facts
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Denial
from tests.support.gateway import LIMITS, LISTED, POLICY, World, trust_root

DOC = Path(__file__).parents[2] / "docs" / "policy.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def _load(folder: Path) -> Policy:
    return Policy.load(folder, trust_root(), LISTED)


def _add(folder: Path, text: str) -> None:
    (folder / "own.cedar").write_text(text)


def facts(**changes: Any) -> Facts:
    """Facts to which no policy objects."""
    fields: dict[str, Any] = {
        "strategy": "alpha",
        "venue": "paper",
        "symbol": "XRP/ETH",
        "limits": LIMITS,
        "ready": True,
        "caller_error": None,
        "list_age": 0,
        "intent_age": 0,
        "duplicate": False,
        "side": "buy",
        "type": "limit",
        "tif": "GTC",
        "qty": Decimal(100),
        "price": Decimal("0.001"),
        "instrument": trust_root().instruments[0],
        "notional": Decimal("0.1"),
        "cap": Decimal(5),
        "cap_notional": Decimal("0.1"),
        "lease": (0, 1),
        "armed": True,
        "custody": bytes(16),
        "heartbeat_age": 0,
        "feed": "live",
        "data_age": 0,
        "deviation_bps": 0,
        "messages_left": 1,
        "open_notional": Decimal("0.1"),
        "position_notional": Decimal("0.1"),
        "gross_notional": Decimal("0.1"),
    }
    return Facts(**{**fields, **changes})


def test_shipped_policy_permits_what_nothing_speaks_against() -> None:
    verdict = _load(POLICY).place(facts())
    assert (verdict.allow, verdict.policies, verdict.errors) == (True, ("listed-strategy-places",), ())


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"caller_error": Denial("X", "y")}, "session-unlisted"),
        ({"list_age": None}, "session-unlisted"),
        ({"list_age": 3_000_000_001}, "session-unlisted"),
        ({"intent_age": 3_000_000_001}, "intent-stale"),
        ({"armed": False}, "not-armed"),
        ({"heartbeat_age": None}, "breaker"),
        ({"heartbeat_age": 1_000_000_001}, "breaker"),
        ({"tripped": ("all",)}, "breaker"),
        ({"custody": None}, "custody-unknown"),
        ({"feed": "stale"}, "market-data"),
        ({"data_age": None}, "market-data"),
        ({"data_age": 2_000_000_001}, "market-data"),
        ({"deviation_bps": None}, "price-collar"),
        ({"deviation_bps": 101}, "price-collar"),
        ({"qty": Decimal("600.000000001")}, "order-size"),
        ({"notional": None}, "order-size"),
        ({"notional": Decimal("0.500000001")}, "order-size"),
        ({"messages_left": 0}, "message-rate"),
        ({"open_notional": None}, "exposure"),
        ({"open_notional": Decimal("1.000000001")}, "exposure"),
        ({"position_notional": None}, "exposure"),
        ({"position_notional": Decimal("0.800000001")}, "exposure"),
        ({"gross_notional": None}, "exposure"),
        ({"gross_notional": Decimal("1.500000001")}, "exposure"),
    ],
)
def test_policy_forbids_by_itself_what_the_controls_forbid_too(changes: dict[str, Any], policy: str) -> None:
    verdict = _load(POLICY).place(facts(**changes))
    assert not verdict.allow
    assert verdict.policies == (policy,)


def test_unlisted_strategy_and_foreign_instrument_are_denied_by_default() -> None:
    policy = _load(POLICY)
    assert not policy.place(facts(strategy="gamma")).allow
    unknown = policy.place(facts(symbol="DOGE/ETH"))
    assert not unknown.allow
    assert unknown.errors, "an entity that does not exist is an evaluation error, and that denies"


def test_strategy_name_cannot_smuggle_policy_syntax() -> None:
    verdict = _load(POLICY).place(facts(strategy='alpha" || true || "'))
    assert not verdict.allow


def test_huge_amounts_are_clamped_and_denied(folder: Path) -> None:
    verdict = _load(folder).place(facts(qty=Decimal(10) ** 20 - 1, notional=Decimal(10) ** 38))
    assert verdict.policies == ("order-size",)
    assert units(Decimal(10) ** 38) == MAX_LONG
    assert units(-(Decimal(10) ** 38)) == -MAX_LONG
    assert units(Decimal("0.000000001")) == 1, "rounded up"


def test_empty_policy_denies_everything(folder: Path) -> None:
    (folder / "gateway.cedar").write_text("// nothing\n")
    verdict = _load(folder).place(facts())
    assert (verdict.allow, verdict.policies) == (False, ())


def test_erring_forbid_denies_although_cedar_would_skip_it(folder: Path) -> None:
    _add(
        folder,
        '@id("overflows") forbid (principal, action == Action::"PlaceOrder", resource) '
        "when { context.maxQuantity + 9223372036854775807 < 0 };",
    )
    verdict = _load(folder).place(facts())
    assert verdict.errors
    assert not verdict.allow


def test_operator_can_restrict_an_instrument(folder: Path) -> None:
    example = re.search(r"^@id\(\"restricted-xrp-eth\"\)\n.*?;$", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert example is not None, "docs/policy.md shows how"
    _add(folder, example.group())
    verdict = _load(folder).place(facts())
    assert (verdict.allow, verdict.policies) == (False, ("restricted-xrp-eth",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quantity: Long,", "quantity: Long,\n    person: String,"),  # a fact that the gateway does not give
        ("quantity: Long,", "quantity: String,"),
        ("    side: String,", ""),
        ("maxOpenNotional: Long,", "maxOpenNotional: Bool,"),
        ("notional?: Long,", "notional: Long,"),  # it may be missing
        ("heartbeatAgeMs?: Long,", "heartbeatAgeMs?: String,"),
        ("ownOrder: Bool,", "ownOrder: Bool, why: String,"),
    ],
)
def test_schema_that_does_not_take_the_gateways_facts_stops_the_start(folder: Path, old: str, new: str) -> None:
    schema = folder / "gateway.cedarschema"
    text = schema.read_text()
    assert old in text
    schema.write_text(text.replace(old, new))
    (folder / "gateway.cedar").write_text('@id("all") permit (principal, action, resource);')
    with pytest.raises(ConfigError) as caught:
        _load(folder)
    assert caught.value.code == "POLICY_SCHEMA"
    assert "gateway.cedarschema" in caught.value.text


# --- what is refused at start, by name of the defect ------------------------------------------------------

PLACE = '(principal, action == Action::"PlaceOrder", resource)'


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (f'@id("x") permit {PLACE} when {{ context.notional > 1 }};', "POLICY_TYPE_CHECK", "notional"),
        (f'@id("x") forbid {PLACE} when {{ context.notionall > 1 }};', "POLICY_TYPE_CHECK", "notionall"),
        (f'@id("x") forbid {PLACE} when {{ context.quantity > "1" }};', "POLICY_TYPE_CHECK", "x: "),
        ('@id("x") permit (principal, action == Action::"Withdraw", resource);', "POLICY_TYPE_CHECK", "Withdraw"),
        (f'@id("x") permit {PLACE} when {{ 1 }};', "POLICY_TYPE_CHECK", "Bool"),
        ("permit (", "POLICY_TYPE_CHECK", "own.cedar"),
        (f"forbid {PLACE};", "POLICY_ID", "missing"),
        (f'@id("breaker") forbid {PLACE};', "POLICY_ID", "breaker"),
        ('@id("t") permit (principal == ?principal, action == Action::"PlaceOrder", resource);', "POLICY_TEMPLATE", ""),
    ],
)
def test_policy_that_is_not_right_stops_the_start(folder: Path, text: str, code: str, says: str) -> None:
    _add(folder, text)
    with pytest.raises(ConfigError) as caught:
        _load(folder)
    assert caught.value.code == code
    assert "own.cedar" in caught.value.text
    assert says in caught.value.text


def test_schema_that_does_not_parse_stops_the_start(folder: Path) -> None:
    (folder / "gateway.cedarschema").write_text("entity Strategy {")
    with pytest.raises(ConfigError) as caught:
        _load(folder)
    assert caught.value.code == "POLICY_SCHEMA"


@pytest.mark.parametrize("missing", ["gateway.cedar", "gateway.cedarschema"])
def test_missing_file_stops_the_start(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ConfigError) as caught:
        _load(folder)
    assert caught.value.code == "POLICY_FILES"


def test_missing_folder_and_foreign_bytes_stop_the_start(folder: Path) -> None:
    with pytest.raises(ConfigError):
        _load(folder / "nowhere")
    (folder / "own.cedar").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        _load(folder)
    assert caught.value.code == "POLICY_FILE"


def test_listing_of_an_unsigned_instrument_stops_the_start() -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.load(POLICY, trust_root(), {("paper", "DOGE/ETH"): ("alpha",)})
    assert caught.value.code == "POLICY_LISTING"


def test_digest_covers_every_file_name_and_text(folder: Path) -> None:
    first = _load(folder).digest
    assert first == _load(POLICY).digest
    _add(folder, "// a comment\n")
    second = _load(folder).digest
    (folder / "own.cedar").rename(folder / "other.cedar")
    third = _load(folder).digest
    assert len({first, second, third}) == 3


def test_decision_names_the_policy_that_it_was_made_by(folder: Path) -> None:
    _add(folder, f'@id("nobody") forbid {PLACE};')
    policy = _load(folder)
    w = World(policy=policy)
    decision = w.ask(w.intent())
    assert decision.policy_hash == policy.digest
    assert decision.policies == ("nobody",)
    assert [d.code for d in decision.denials] == ["POLICY_DENIED"]


def test_every_fact_of_the_schema_is_given() -> None:
    """An optional attribute that the code never fills would make a rule that can never allow."""
    declared = set(re.findall(r"^ +(\w+)\?: Long", (POLICY / "gateway.cedarschema").read_text(), re.MULTILINE))
    context = _order_context(facts())
    given = {k for part in (context, context["caller"]) for k, v in part.items() if v is not None}
    assert declared
    assert declared <= given


def test_limits_are_the_strategys_own(folder: Path) -> None:
    small = msgspec.structs.replace(LIMITS, max_qty=Decimal(1))
    assert _load(folder).place(facts(limits=small)).policies == ("order-size",)
