"""Policies: type-checked at start, default deny, whatever errs denies."""

from __future__ import annotations

import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.components.gateway.policy import MAX_LONG, Policy, PolicyVerdict, _order_context, units
from tallystick.components.gateway.risk.controls import check
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Denial
from tallystick.schemas.trust import Listing
from tests.support.gateway import LIMITS, POLICY, World, facts, trust_root

PLACE = '(principal, action == Action::"PlaceOrder", resource)'
DOC = Path(__file__).parents[2] / "docs" / "policy.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def _load(folder: Path) -> Policy:
    return Policy.read(folder, trust_root())


def _add(folder: Path, text: str) -> None:
    (folder / "own.cedar").write_text(text)


def _place(policy: Policy, **changes: Any) -> PolicyVerdict:
    asked = facts(**changes)
    return policy.place(asked.caller, asked.order)


def test_shipped_policy_permits_what_nothing_speaks_against() -> None:
    verdict = _place(_load(POLICY))
    assert (verdict.allow, verdict.policies, verdict.errors) == (True, ("listed-strategy-places",), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"error": Denial("X", "y"), "list_age": None, "intent_age": 10**18, "ready": False, "duplicate": True},
        {"armed": False, "lease": None, "custody": None, "heartbeat_age": None, "tripped": ("all",)},
        {"feed": "stale", "data_age": None, "deviation_bps": None, "messages_left": 0},
        {"qty": Decimal(10) ** 20, "notional": None, "caps": (("ETH", Decimal(1), None),)},
        {"open_notional": None, "position_notional": None, "gross_notional": None},
        {"limits": msgspec.structs.replace(LIMITS, max_qty=Decimal(1), max_notional=Decimal("0.01"))},
    ],
)
def test_limits_and_freshness_are_no_matter_of_the_policy(changes: dict[str, Any]) -> None:
    assert check(facts(**changes)), "the risk engine decides them"
    assert _place(_load(POLICY), **changes).allow


def test_policy_sees_facts_of_the_order_and_no_limit() -> None:
    assert set(_order_context(facts().order)) == {
        "side",
        "orderType",
        "timeInForce",
        "quantity",
        "notional",
        "deviationBps",
        "openNotional",
        "positionNotional",
        "grossNotional",
        "reducing",
    }


def test_unlisted_strategy_and_foreign_instrument_are_denied_by_default() -> None:
    policy = _load(POLICY)
    assert not _place(policy, strategy="gamma").allow
    unknown = _place(policy, symbol="DOGE/ETH")
    assert not unknown.allow
    assert unknown.errors, "an entity that does not exist is an evaluation error, and that denies"


def test_strategy_name_cannot_smuggle_policy_syntax() -> None:
    verdict = _place(_load(POLICY), strategy='alpha" || true || "')
    assert not verdict.allow


def test_huge_amounts_are_clamped_to_the_largest_number(folder: Path) -> None:
    _add(folder, f'@id("huge") forbid {PLACE} when {{ context.quantity == {MAX_LONG} && context has notional }};')
    verdict = _place(_load(folder), qty=Decimal(10) ** 20 - 1, notional=Decimal(10) ** 38)
    assert (verdict.policies, verdict.errors) == (("huge",), ())
    assert units(Decimal(10) ** 38) == MAX_LONG
    assert units(-(Decimal(10) ** 38)) == -MAX_LONG
    assert units(Decimal("0.000000001")) == 1, "rounded up"


def test_empty_policy_denies_everything(folder: Path) -> None:
    (folder / "gateway.cedar").write_text("// nothing\n")
    verdict = _place(_load(folder))
    assert (verdict.allow, verdict.policies) == (False, ())


def test_erring_forbid_denies_although_cedar_would_skip_it(folder: Path) -> None:
    _add(
        folder,
        '@id("overflows") forbid (principal, action == Action::"PlaceOrder", resource) '
        "when { context.quantity + 9223372036854775807 < 0 };",
    )
    verdict = _place(_load(folder))
    assert verdict.errors
    assert not verdict.allow


EXAMPLES = re.findall(r"^```cedar\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


def test_operator_can_forbid_what_the_documentation_shows(folder: Path) -> None:
    _add(folder, "\n".join(EXAMPLES))
    policy = _load(folder)
    one = {"symbol": "BTC/USDT", "notional": Decimal("0.1"), "reducing": True}
    assert _place(policy, **one).allow
    assert _place(policy, **{**one, "reducing": False}).policies == ("reduce-only-at-paper",)
    assert _place(policy, **{**one, "notional": Decimal("0.100000001")}).policies == ("small-orders-at-paper",)
    assert _place(policy, **{**one, "notional": None}).policies == ("small-orders-at-paper",)
    assert _place(policy, **{**one, "symbol": "XRP/ETH"}).policies == ("restricted-xrp-eth",)


@pytest.mark.parametrize(
    ("changes", "allowed"), [({"side": "sell"}, True), ({}, False), ({"side": "sell", "type": "market"}, False)]
)
def test_strategy_can_be_kept_to_one_kind_of_order(folder: Path, changes: dict[str, Any], allowed: bool) -> None:
    (example,) = (text for text in EXAMPLES if "unwind" in text)
    _add(folder, example.replace("unwind", "alpha"))
    assert _place(_load(folder), **changes).allow is allowed


def test_documentation_names_every_fact_of_an_order() -> None:
    (row,) = re.findall(r"^\| `context` of PlaceOrder \| (.*) \|$", DOC.read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(_order_context(facts().order))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quantity: Long,", "quantity: Long,\n    person: String,"),  # a fact that the gateway does not give
        ("quantity: Long,", "quantity: String,"),
        ("    side: String,", ""),
        ("reducing: Bool,", "reducing: Long,"),
        ("notional?: Long,", "notional: Long,"),  # it may be missing
        ("openNotional?: Long,", "openNotional?: String,"),
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
        (f'@id("listed-strategy-places") forbid {PLACE};', "POLICY_ID", "listed-strategy-places"),
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
        listing = Listing(venue="paper", symbol="DOGE/ETH", strategies=("alpha",))
        Policy.load(POLICY, msgspec.structs.replace(trust_root(), listings=(listing,)))
    assert caught.value.code == "POLICY_LISTING"


def test_policies_that_the_operator_did_not_sign_are_refused(folder: Path) -> None:
    assert Policy.load(folder, trust_root()).digest.hex() == trust_root().policy
    _add(folder, f'@id("mine")\npermit {PLACE};\n')
    with pytest.raises(ConfigError, match=r"POLICY_UNSIGNED: .*tallystick admit"):
        Policy.load(folder, trust_root())


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
    given = {name for name, value in _order_context(facts().order).items() if value is not None}
    assert declared
    assert declared <= given
