"""House rules in Cedar: parsed and type-checked once, asked for every intent, default deny.

- Policies say who may place or cancel what, and what else an operator wants to forbid.  Limits and freshness are
  no facts here: the risk engine (`risk`) decides them, alone.
- A policy folder holds `*.cedar` files and exactly one `*.cedarschema`.  All policies must type-check
  against the schema, and each needs a unique `@id`; anything else is a `ConfigError` at start that
  names file and cause.
- The facts that the code gives must fit the schema, which is asked at start, with every optional fact
  and with none; asking again for every request would cost a third of it and could say nothing new.
- A policy that errs while it is evaluated denies: Cedar itself would skip an erring `forbid`.
- The digest covers the text of every file, so a decision names exactly the policy that it was made by.

The policy folder is not trusted: the operator signs its digest in the trust root, and what differs from it is refused.

Source: the Cedar policy language, https://docs.cedarpolicy.com.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any, Final, Literal

import cedarpy
import msgspec

from tallystick.components.gateway.risk.facts import Caller, Order
from tallystick.runtime.deployment.house_rules import read_house_rules
from tallystick.schemas.amounts import EXACT
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.orders import Denial
from tallystick.schemas.trust import TrustRoot

MAX_LONG: Final = 2**63 - 1


Action = Literal["PlaceOrder", "CancelOrder"]


class PolicyVerdict(msgspec.Struct, frozen=True):
    """`allow`, the ids of the determining policies (sorted), and evaluation errors (which deny)."""

    allow: bool
    policies: tuple[str, ...]
    errors: tuple[str, ...] = ()

    def denials(self, strategy: str) -> list[Denial]:
        """What a decision about `strategy` says of this verdict; empty where the policy allows it."""
        if self.errors:
            return [Denial(code="POLICY_ERROR", text=f"{'; '.join(self.errors)[:500]}, limit=none")]
        if not self.allow:
            cause = f"forbidden by {', '.join(self.policies)}" if self.policies else "no policy permits it"
            return [Denial(code="POLICY_DENIED", text=f"{cause}: strategy {strategy}, limit=what policies permit")]
        return []


# Cedar knows the trust root's instruments only, and is not asked about others.
NOT_ASKED: Final = PolicyVerdict(allow=False, policies=())


class Policy:
    """Parsed policies with the entities of one deployment; see the module docstring."""

    __slots__ = ("_entities", "_policies", "digest")

    digest: bytes
    """SHA-256 over name and text of every file of the folder, in order of name."""

    def __init__(self, policies: cedarpy.PolicySet, schema: cedarpy.Schema, entities: str, digest: bytes) -> None:
        self._policies = policies
        self._entities = cedarpy.Entities.from_json_str(entities, schema)
        self.digest = digest

    @classmethod
    def load(cls, folder: Path, root: TrustRoot) -> Policy:
        """Read, type-check and parse the policies of `folder`, which are those that `root` names.  Raises `ConfigError`."""
        policy = cls.read(folder, root)
        if policy.digest.hex() != root.policy:
            raise ConfigError(
                "POLICY_UNSIGNED",
                f"{folder}: digest {policy.digest.hex()[:16]}, the operator signed {root.policy[:16]} in trust root "
                f"{root.number}: take the change back, or have it signed with `tallystick admit`",
            )
        return policy

    @classmethod
    def read(cls, folder: Path, root: TrustRoot) -> Policy:
        """The same for policies that nobody signed yet: to check them."""
        rules = read_house_rules(folder)
        try:
            schema = cedarpy.Schema.from_str(rules.schema_text)
        except ValueError as exc:
            raise ConfigError("POLICY_SCHEMA", f"{rules.schema}: {exc}") from exc
        ids: dict[str, Path] = {}
        for path, text in rules.policies.items():
            _check(path, text, schema, ids)
        try:
            policies = cedarpy.PolicySet.from_str("\n".join(rules.policies.values()))
            policy = cls(policies, schema, _entities(root), rules.digest)
        except ValueError as exc:
            raise ConfigError("POLICY", f"{folder}: {exc}") from exc
        policy._check_facts(rules.schema, schema)
        return policy

    def place(self, caller: Caller, order: Order) -> PolicyVerdict:
        """Decide PlaceOrder."""
        return self._decide("PlaceOrder", caller, _order_context(order))

    def cancel(self, caller: Caller, own_order: bool) -> PolicyVerdict:
        """Decide CancelOrder; `own_order`: the named intent is an open order of this strategy and instrument."""
        return self._decide("CancelOrder", caller, {"ownOrder": own_order})

    def _decide(self, action: Action, caller: Caller, context: dict[str, Any]) -> PolicyVerdict:
        result = self._ask(action, caller, context, None)
        found = result.diagnostics
        errors = tuple(sorted(found.errors))
        names = found.id_annotations_by_reason
        return PolicyVerdict(
            allow=result.decision is cedarpy.Decision.Allow and not errors,
            policies=tuple(sorted(names.get(reason, reason) for reason in found.reasons)),
            errors=errors,
        )

    def _ask(
        self, action: Action, caller: Caller, context: dict[str, Any], schema: cedarpy.Schema | None
    ) -> cedarpy.AuthzResult:
        request = {
            "principal": {"type": "Strategy", "id": caller.strategy},
            "action": {"type": "Action", "id": action},
            "resource": {"type": "Instrument", "id": f"{caller.venue}/{caller.symbol}"},
            "context": msgspec.json.encode({k: v for k, v in context.items() if v is not None}).decode(),
        }
        return cedarpy.is_authorized(request, self._policies, self._entities, schema)

    def _check_facts(self, path: Path, schema: cedarpy.Schema) -> None:
        """Raise `ConfigError` unless what the code gives fits the schema, with all and with no optional facts."""
        requests: tuple[tuple[Action, dict[str, Any]], ...] = (
            ("PlaceOrder", _order_context(_SPARSE)),
            ("PlaceOrder", _order_context(_FULL)),
            ("CancelOrder", {"ownOrder": False}),
        )
        for action, context in requests:
            result = self._ask(action, _ANYBODY, context, schema)
            if result.decision is cedarpy.Decision.NoDecision:
                raise ConfigError(
                    "POLICY_SCHEMA",
                    f"{path}: {action} does not take the gateway's facts: {result.diagnostics.errors[0]}",
                )


def units(amount: Decimal | None) -> int | None:
    """An amount in 1e-8 units as a Cedar Long, rounded up and clamped; None stays None."""
    if amount is None:
        return None
    return _clamp(int(EXACT.scaleb(amount, 8).to_integral_value(ROUND_CEILING, EXACT)))


def _clamp(value: int) -> int:
    return max(-MAX_LONG, min(MAX_LONG, value))


def _order_context(order: Order) -> dict[str, Any]:
    return {
        "side": order.side,
        "orderType": order.type,
        "timeInForce": order.tif,
        "quantity": units(order.qty),
        "notional": units(order.notional),
        "deviationBps": None if order.deviation_bps is None else _clamp(order.deviation_bps),
        "openNotional": units(order.open_notional),
        "positionNotional": units(order.position_notional),
        "grossNotional": units(order.gross_notional),
        "reducing": order.reducing,
    }


def _check(path: Path, text: str, schema: cedarpy.Schema, ids: dict[str, Path]) -> None:
    """Type-check one file and note its policy ids.  Raises `ConfigError`."""
    checked = cedarpy.validate_policies(text, schema)
    if not checked.validation_passed:
        names = checked.id_annotations_by_policy_id
        causes = "; ".join(f"{names.get(e.policy_id, e.policy_id)}: {e.error}".lstrip(": ") for e in checked.errors)
        raise ConfigError("POLICY_TYPE_CHECK", f"{path}: {causes or 'does not type-check'}")
    try:
        policies = cedarpy.policies_to_pst(text)
    except ValueError as exc:
        raise ConfigError("POLICY", f"{path}: {exc}") from exc
    if policies.templates:
        raise ConfigError("POLICY_TEMPLATE", f"{path}: templates are not used here; write the policy out")
    for policy in policies.static_policies.values():
        name = policy.annotations.get("id") or ""
        if not name or name in ids:
            where = f"also in {ids[name]}" if name in ids else "missing"
            raise ConfigError("POLICY_ID", f"{path}: every policy needs a unique @id; {name!r} is {where}")
        ids[name] = path


def _entities(root: TrustRoot) -> str:
    """The deployment as Cedar entities (JSON).  Raises `ConfigError` for a listing without instrument."""
    known = {(i.venue, i.symbol) for i in root.instruments}
    listed = {(one.venue, one.symbol): one.strategies for one in root.listings}
    for venue, symbol in listed:
        if (venue, symbol) not in known:
            raise ConfigError("POLICY_LISTING", f"{symbol} at {venue} is listed but not in trust root {root.number}")
    strategies = sorted({name for names in listed.values() for name in names})
    out = [_entity("Strategy", name) for name in strategies]
    for venue, terms in root.venues.items():
        out += [_entity("Venue", venue), _entity("Account", f"{venue}/{terms.account}", [("Venue", venue)])]
    for record in root.instruments:
        parents = [("Venue", record.venue)]
        if record.venue in root.venues:
            parents.append(("Account", f"{record.venue}/{root.venues[record.venue].account}"))
        names = sorted(set(listed.get((record.venue, record.symbol), ())))
        attrs = {
            "base": record.base,
            "quote": record.quote,
            "strategies": [{"__entity": {"type": "Strategy", "id": name}} for name in names],
        }
        out.append(_entity("Instrument", f"{record.venue}/{record.symbol}", parents, attrs))
    return json.dumps(out)


def _entity(
    kind: str, name: str, parents: Sequence[tuple[str, str]] = (), attrs: Mapping[str, object] | None = None
) -> dict[str, Any]:
    return {
        "uid": {"type": kind, "id": name},
        "attrs": dict(attrs or {}),
        "parents": [{"type": k, "id": n} for k, n in parents],
    }


_ONE: Final = Decimal(1)
_ANYBODY: Final = Caller(
    strategy="x", venue="x", symbol="x", ready=True, error=None, list_age=0, intent_age=0, duplicate=False
)
# Orders for the schema to look at: without and with everything optional.
_SPARSE: Final = Order(
    side="buy",
    type="limit",
    tif="GTC",
    qty=_ONE,
    price=None,
    deviation_bps=None,
    notional=None,
    open_notional=None,
    position_notional=None,
    gross_notional=None,
    reducing=False,
)
_FULL: Final = msgspec.structs.replace(
    _SPARSE, deviation_bps=0, notional=_ONE, open_notional=_ONE, position_notional=_ONE, gross_notional=_ONE
)
