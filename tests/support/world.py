"""A trust root with software keys and sealed messages, for tests that need no server and no token.

Keys come from fixed seeds, so that vectors and failures repeat.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

import msgspec

from tallystick.schemas.arming import ArmLease
from tallystick.schemas.credential import Credential, open_credential
from tallystick.schemas.limits import LimitRow, Limits
from tallystick.schemas.methods import CERTIFICATE, HardwareToken, Method
from tallystick.schemas.nats_jwt import SessionKey, encode_jwt, encode_key, user_claims
from tallystick.schemas.trust import Cap, ComponentTrust, Instrument, Listing, TrustRoot, Venue

NOW = 1_732_289_000_000_000_000
DEPLOYMENT = "test"

PUBLISHES = {
    "authority": ("cred.>", "guard.authority", "dead.authority"),
    "custody": ("guard.custody", "dead.custody", "control.config.custody", "control.key.custody"),
    "market-data": ("md.>", "ref.>", "guard.market-data", "dead.market-data"),
    "strategy-alpha": ("signal.alpha.>", "order.intent.alpha.>", "guard.strategy-alpha", "dead.strategy-alpha"),
    "strategy-beta": ("signal.beta.>", "order.intent.beta.>", "guard.strategy-beta", "dead.strategy-beta"),
    "gateway": ("order.decision.>", "guard.gateway", "dead.gateway"),
    "execution": ("order.event.>", "guard.execution", "dead.execution"),
    "portfolio": ("fill.>", "position.>", "balance.>", "guard.portfolio", "dead.portfolio"),
    "breaker": ("control.breaker.>", "control.arm.>", "order.correction.>", "guard.breaker", "dead.breaker"),
    "audit": ("audit.checkpoint", "guard.audit", "dead.audit"),
    "streams": ("alert.>", "guard.streams", "dead.streams"),
    "witness-one": ("audit.cosignature.one", "guard.witness-one", "dead.witness-one"),
}


def seed(label: str) -> bytes:
    """32 bytes that depend on the label alone."""
    return hashlib.sha256(b"tallystick test " + label.encode()).digest()


def key(label: str) -> SessionKey:
    """The software key of a label."""
    return SessionKey(seed(label))


def instrument(symbol: str = "XRP/ETH") -> Instrument:
    """An instrument of the venue `paper`."""
    base, quote = symbol.split("/")
    return Instrument(
        venue="paper",
        symbol=symbol,
        venue_symbol=base + quote,
        base=base,
        quote=quote,
        tick=Decimal("0.00000001"),
        step=Decimal(1),
        min_notional=Decimal("0.001"),
        # Below what the tests ask for: their orders count at their own price.
        market_price=Decimal("0.0000001"),
    )


LIMITS = Limits(
    max_notional=Decimal("0.5"),
    max_qty=Decimal(600),
    max_open_notional=Decimal(1),
    max_position_notional=Decimal("0.8"),
    max_gross_notional=Decimal("1.5"),
    collar_bps=100,
    messages_per_second=5,
    burst=10,
    stale_ms=2000,
)


def limit_rows(limits: Limits = LIMITS) -> tuple[LimitRow, ...]:
    """`limits` for both strategies, whatever the quote."""
    return tuple(
        LimitRow(strategy=strategy, quote=quote, limits=limits)
        for strategy in ("alpha", "beta")
        for quote in ("ETH", "USDT")
    )


def method(component: str) -> Method:
    """How a component proves itself: execution has a token, everybody else a certificate."""
    if component == "execution":
        return HardwareToken(algorithm="ed25519", key=key("hardware").public.hex())
    return CERTIFICATE


def lease(trust: TrustRoot, start: int, until: int, **changes: Any) -> ArmLease:
    """An operator's lease for execution at the paper exchange, with all that the trust root allows."""
    made = ArmLease(
        deployment=trust.deployment,
        component="execution",
        hardware_key=trust.hardware_key("execution"),
        venues=("paper",),
        caps=trust.caps,
        start=start,
        until=until,
    )
    return msgspec.structs.replace(made, **changes)


def trust_root(*, deployment: str = DEPLOYMENT, number: int = 1, lifetime: int = 900) -> TrustRoot:
    """A trust root over the software keys."""
    return TrustRoot(
        deployment=deployment,
        number=number,
        issued=NOW - 10**15,
        expires=NOW + 10**18,
        operator_root=key("operator-root").public.hex(),
        operator=key("operator").public.hex(),
        core_account=encode_key("A", key("core").public),
        components={
            name: ComponentTrust(
                role_key=encode_key("A", key(f"role {name}").public),
                account=encode_key("A", key(f"account {name}").public),
                publishes=publishes,
                lifetime=lifetime,
                method=method(name),
            )
            for name, publishes in PUBLISHES.items()
        },
        venues={"paper": Venue(kind="binance-spot", account="main", host="localhost")},
        instruments=(instrument("XRP/ETH"), instrument("BTC/USDT")),
        caps=(
            Cap(account="main", asset="ETH", max_order=Decimal(5), max_hourly=Decimal(500)),
            Cap(account="main", asset="XRP", max_order=Decimal(10_000), max_hourly=Decimal(1_000_000)),
            Cap(account="main", asset="USDT", max_order=Decimal(5000), max_hourly=Decimal(500000)),
            Cap(account="main", asset="BTC", max_order=Decimal(1_000_000), max_hourly=Decimal(10_000_000)),
        ),
        limits=limit_rows(),
        listings=(
            Listing(venue="paper", symbol="XRP/ETH", strategies=("alpha", "beta")),
            Listing(venue="paper", symbol="BTC/USDT", strategies=("alpha",)),
        ),
        policy=seed("policy").hex(),
    )


def credential(
    component: str,
    trust: TrustRoot | None = None,
    *,
    boot: bytes | None = None,
    session: SessionKey | None = None,
    role: SessionKey | None = None,
    issued_at: int = NOW,
    lifetime: int = 300,
    jti: str = "1",
) -> tuple[Credential, SessionKey]:
    """A credential and its session key, signed by the component's role key (or another `role`)."""
    trust = trust or trust_root()
    session = session or key(f"session {component} {jti}")
    signer = role or key(f"role {component}")
    issued_s = issued_at // 1_000_000_000
    claims = user_claims(
        component,
        boot or seed(f"boot {component}")[:16],
        session.public,
        signer.public,
        key(f"account {component}").public,
        issued_s,
        issued_s + lifetime,
        jti,
    )
    return open_credential(encode_jwt(signer, "A", claims), trust), session
