"""A real deployment for tests: tokens, broker and authority as `tallystick up` runs them, the rest as the test wants.

Components in the test's own process get their sessions from the real authority over mutual TLS.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tallystick.runtime.bus.link import CredentialSource
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.deployment import certificates, process
from tallystick.runtime.deployment.ceremony import init
from tallystick.runtime.deployment.config import StrategyConfig
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.service import ServiceContext, Setup
from tallystick.runtime.deployment.service_accounts import serving
from tallystick.runtime.deployment.supervisor import Supervisor
from tallystick.runtime.deployment.template import DEFAULT_TEMPLATE
from tallystick.runtime.keys.keystore import Keystore, Secret

PIN = Secret("a pin for tests")
MOMENTUM = "tallystick.components.strategy.examples.momentum"
STRATEGIES = tuple(StrategyConfig(name=n, module=MOMENTUM, instruments=("XRP/ETH",)) for n in ("alpha", "beta"))


def make(
    directory: Path,
    *,
    session_lifetime_s: int = 0,
    certificate_lifetime_s: int = 0,
    template: str = DEFAULT_TEMPLATE,
    clock: Callable[[], int] = time.time_ns,
    rotation: bool = False,
) -> tuple[Deployment, Keystore]:
    """A new deployment with the strategies alpha and beta, with `rotation` also a keymaster."""
    for key, value in (
        ("session_lifetime_s", session_lifetime_s),
        ("certificate_lifetime_s", certificate_lifetime_s),
    ):
        if value:
            template = template.replace('host = "127.0.0.1"\n', f'host = "127.0.0.1"\n{key} = {value}\n', 1)
    deployment = init(directory, "test", PIN, clock, strategies=STRATEGIES, template=template, rotation=rotation)
    return deployment, Keystore.open(deployment.keystore, PIN)


class Running:
    """A running deployment, and contexts of components in this process."""

    def __init__(self, deployment: Deployment, keystore: Keystore, supervisor: Supervisor) -> None:
        self.deployment = deployment
        self.keystore = keystore
        self.supervisor = supervisor
        self.contexts: list[ServiceContext] = []

    def setup(self, component: str, certificate_of: str | None = None) -> Setup:
        """What a process of `component` is made from; `certificate_of`: with another's certificate."""
        owner = certificate_of or component
        certificates.ensure(self.deployment, self.keystore, (owner,), time.time_ns())
        secrets = {name: self.keystore[name] for name in self.deployment.secret_names(owner)}
        made = process.load_setup(self.deployment.directory, owner, secrets)
        if owner == component:
            return made
        spec = self.deployment.bus().component(component)
        return msgspec.structs.replace(made, spec=spec)

    async def context(
        self, component: str, *, source: CredentialSource | None = None, boot: bytes | None = None
    ) -> ServiceContext:
        """A logged-in context; call `open()` after subscribing."""
        setup = self.setup(component)
        if boot is not None:
            setup = msgspec.structs.replace(setup, boot=boot)
        metrics = Metrics()
        link = setup.link(source or setup.authority(), metrics)
        await link.start()
        context = setup.context(link, metrics)
        self.contexts.append(context)
        return context

    async def close(self) -> None:
        """Close the contexts, newest first."""
        for context in reversed(self.contexts):
            await context.close()
        self.contexts.clear()


@contextlib.asynccontextmanager
async def running(deployment: Deployment, keystore: Keystore, *processes: str, **kw: Any) -> AsyncIterator[Running]:
    """The broker, the authority and `processes` run; everything else is the test's."""
    bus = deployment.bus()
    apart = frozenset(bus.components) - {"authority", *processes}
    supervisor = Supervisor(deployment, keystore, apart=apart, **kw)
    made = Running(deployment, keystore, supervisor)
    with contextlib.ExitStack() as stack:
        try:
            await supervisor.start()
            # Strategies that the test plays get their tokens, as those do that the supervisor starts.
            stack.enter_context(serving(deployment, keystore, apart))
            yield made
        finally:
            await made.close()
            await supervisor.stop()


__all__: Sequence[str] = ("PIN", "STRATEGIES", "Running", "make", "running")
