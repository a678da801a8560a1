"""Components in the test's own process on the real broker: contexts with software keys.

`Desk` holds one broker and makes a `ServiceContext` per component; the credential source mints with the test's
role keys, as the authority would, without its certificate and proof checks.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog

from tallystick import infra
from tallystick.runtime.bus.link import Link
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.received import Handler, Received
from tallystick.runtime.bus.snapshots import Vault
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.deployment.terms import terms
from tallystick.schemas.nats_jwt import SessionKey, encode_jwt, encode_key, user_claims
from tallystick.schemas.trust import ComponentTrust, TrustRoot, sign_document
from tests.support import world
from tests.support.bus import TestBus, now_s
from tests.support.world import key, seed


def live_trust(bus: TestBus) -> TrustRoot:
    """The test trust root, valid now, for exactly the components of the broker."""
    base = world.trust_root()
    components = {
        name: ComponentTrust(
            role_key=encode_key("A", key(f"role {name}").public),
            account=encode_key("A", key(f"account {name}").public),
            publishes=component.publishes,
            lifetime=component.lifetime_s,
            method=world.method(name),
        )
        for name, component in bus.bus.components.items()
    }
    now = time.time_ns()
    return msgspec.structs.replace(base, components=components, issued=now - 10**12, expires=now + 10**15)


def sign_terms(deployment: Deployment, trust: TrustRoot) -> TrustRoot:
    """`trust` with what the deployment's files say, signed into its folder as the operator does."""
    if not deployment.policy.exists():
        shutil.copytree(Path(infra.__file__).parent / "policies", deployment.policy)
    root: TrustRoot = msgspec.structs.replace(trust, **msgspec.structs.asdict(terms(deployment)))
    deployment.trust.mkdir(parents=True, exist_ok=True)
    note = sign_document(root, ("operator-root", key("operator-root")))
    (deployment.trust / f"root-{root.number}.note").write_text(note)
    deployment.pinned_key.write_text(key("operator-root").public.hex())
    return root


class SoftwareSource:
    """Mints credentials with the test's role keys, and counts them."""

    def __init__(self, bus: TestBus, component: str, lifetime_s: int) -> None:
        self.bus = bus
        self.component = component
        self.lifetime_s = lifetime_s
        self.minted: list[str] = []

    async def obtain(self, session: SessionKey, boot: bytes) -> str:
        keys = self.bus.keys.components[self.component]
        issued = now_s()
        jti = f"{len(self.minted)}-{session.public.hex()[:16]}"
        claims = user_claims(
            self.component, boot, session.public, keys.role, keys.account, issued, issued + self.lifetime_s, jti
        )
        self.minted.append(encode_jwt(key(f"role {self.component}"), "A", claims))
        return self.minted[-1]


class Desk:
    """Makes contexts on one broker and closes them."""

    def __init__(self, bus: TestBus) -> None:
        self.bus = bus
        self.trust = live_trust(bus)
        self.contexts: list[ServiceContext] = []

    async def context(
        self, component: str, *, lifetime_s: int = 120, boot: bytes | None = None, **kw: Any
    ) -> ServiceContext:
        """A logged-in context; call `resume()` and `open()` after subscribing."""
        spec = self.bus.component(component)
        metrics = Metrics()
        log = structlog.get_logger().bind(component=component)
        boot = boot or os.urandom(16)
        source = SoftwareSource(self.bus, component, min(lifetime_s, spec.lifetime_s))
        link = Link(
            component=component,
            boot=boot,
            url=self.bus.server.url,
            tls=self.bus.certificate(component)[0],
            trust=self.trust,
            source=source,
            clock=time.time_ns,
            entropy=os.urandom,
            metrics=metrics,
            log=log,
        )
        await link.start()
        context = ServiceContext(
            component=component,
            boot=boot,
            link=link,
            trust=self.trust,
            clock=time.time_ns,
            entropy=os.urandom,
            metrics=metrics,
            log=log,
            reads=spec.reads,
            api=spec.api,
            # As deployed: whoever starts again goes on from what it left.
            **{"vault": Vault(self.bus.folder / "state" / component, seed(f"snapshots {component}")), **kw},
        )
        self.contexts.append(context)
        return context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open, newest first."""
        for context in reversed(self.contexts):
            await context.close()
        self.contexts.clear()


def from_listed(context: ServiceContext, got: list[Received]) -> Handler:
    """A handler that keeps what may act now, and history."""

    async def handle(received: Received) -> None:
        if received.live:
            (await context.admit(received)).require_listed()
        got.append(received)

    return handle
