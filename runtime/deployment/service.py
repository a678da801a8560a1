"""A component of the system: what its process is made from, and what it gets besides the bus.

A `Service` is a process of the system itself; user code is a `Component` that the observer's service hosts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tallystick.infra.nats import topology
from tallystick.runtime.bus.context import BusContext
from tallystick.runtime.bus.enrolment import AuthorityClient
from tallystick.runtime.bus.link import CredentialSource, Link, OwnSession
from tallystick.runtime.bus.log import Log
from tallystick.runtime.bus.metrics import Metrics
from tallystick.runtime.bus.snapshots import Vault, snapshot_key
from tallystick.runtime.deployment.folder import Deployment, passphrase_name
from tallystick.runtime.deployment.proof import proof_of
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.trust import TrustRoot

if TYPE_CHECKING:
    # Most processes have nothing to do with the vault: its client is not for them.
    from tallystick.runtime.vault.leased import Leased


class Setup(msgspec.Struct, frozen=True):
    """What a process is made from, before it has a session."""

    deployment: Deployment
    trust: TrustRoot
    spec: topology.Component
    boot: bytes
    identity: Identity
    secrets: dict[str, Secret]
    clock: Callable[[], int]
    entropy: Callable[[int], bytes]
    log: Log
    # How it holds its secrets from the vault; None for who has none there.
    leased: Leased | None = None

    def authority(self) -> AuthorityClient:
        """Where its sessions come from."""
        config = self.deployment.config
        return AuthorityClient(
            f"https://{config.host}:{config.authority.port}",
            self.identity,
            deployment=self.deployment.name,
            component=self.spec.name,
            clock=self.clock,
            log=self.log,
            proof=proof_of(
                self.deployment, self.trust.component(self.spec.name).method, self.spec.name, self.secrets, self.clock
            ),
        )

    def link(self, source: CredentialSource, metrics: Metrics) -> Link:
        """Its link to the deployment's broker."""
        config = self.deployment.config
        return Link(
            component=self.spec.name,
            boot=self.boot,
            url=f"tls://{config.host}:{config.broker.port}",
            tls=self.identity.tls,
            trust=self.trust,
            source=source,
            clock=self.clock,
            entropy=self.entropy,
            metrics=metrics,
            log=self.log,
        )

    def context(self, link: Link, metrics: Metrics) -> ServiceContext:
        """Its context on a link that has logged in."""
        secret = self.secrets[passphrase_name(self.spec.name)].reveal()
        return ServiceContext(
            component=self.spec.name,
            boot=self.boot,
            link=link,
            trust=self.trust,
            clock=self.clock,
            entropy=self.entropy,
            metrics=metrics,
            log=self.log,
            reads=self.spec.reads,
            api=self.spec.api,
            linger_s=self.spec.linger_ms / 1000,
            vault=Vault(
                self.deployment.state(self.spec.name),
                snapshot_key(secret.encode(), self.trust.deployment, self.spec.name),
            ),
            deployment=self.deployment,
            secrets=self.secrets,
            identity=self.identity,
            leased=self.leased,
        )


class ServiceContext(BusContext):
    """The bus, and the deployment and secrets that this component was given."""

    def __init__(
        self,
        *,
        deployment: Deployment | None = None,
        secrets: Mapping[str, Secret] | None = None,
        identity: Identity | None = None,
        leased: Leased | None = None,
        **bus: Any,
    ) -> None:
        """`deployment`, `identity`, `leased`: None for a service that needs none; `bus`: as `BusContext`."""
        super().__init__(**bus)
        self._leased = leased
        self._identity = identity
        self._deployment = deployment
        self._secrets = dict(secrets or {})

    @property
    def deployment(self) -> Deployment:
        """The deployment's folder and configuration.  Raises `ConfigError` where the process was given none."""
        if self._deployment is None:
            raise ConfigError("DEPLOYMENT", f"{self.component} needs its deployment's folder")
        return self._deployment

    @property
    def session(self) -> OwnSession:
        """The session that this process speaks with now: for those who sign what does not go over the bus."""
        return self.link.session

    @property
    def identity(self) -> Identity:
        """What this process shows on TLS connections.  Raises `ConfigError` where the process was given nothing."""
        if self._identity is None:
            raise ConfigError("DEPLOYMENT", f"{self.component} needs a certificate")
        return self._identity

    @property
    def leased(self) -> Leased:
        """How long its secrets from the vault may be used.  Raises `ConfigError` for who has none there."""
        if self._leased is None:
            raise ConfigError("VAULT_LEASE", f"{self.component} has no secrets from the vault")
        return self._leased

    async def enter_vault(self) -> None:
        """Have its secrets from the vault, where it has some there, and keep their lease until the stop."""
        if self._leased is None:
            return
        self._leased.notice = self.notice
        self.at_stop(self._leased.close)
        self._secrets |= await self._leased.open()
        self.spawn(self._leased.run())

    def secret(self, name: str) -> Secret:
        """One of the secrets that this component was handed, or has from the vault.  Raises `ConfigError` for one that it was not."""
        try:
            return self._secrets[name]
        except KeyError:
            raise ConfigError(
                "SECRETS",
                f"{self.component} needs the secret {name}: is it in the keystore or the vault, and handed over?",
            ) from None

    def secret_or(self, name: str, default: str) -> str:
        """The text of a secret that need not be there."""
        return self._secrets[name].reveal() if name in self._secrets else default


class Service(ABC):
    """One process of the system."""

    @abstractmethod
    async def start(self, ctx: ServiceContext) -> None:
        """Subscribe here.  Reading begins when this returns; background work goes into `ctx.spawn`."""

    async def ready(self) -> None:  # noqa: B027 - most have nothing to do then
        """Called once everything stored before the start was handled; the process then counts as ready."""

    def status(self) -> dict[str, str]:
        """What people should know of it, by a word for what it is about; asked every second once it has started."""
        return {}


class OwnSource(Service):
    """A service whose sessions do not come from the authority: the authority itself, and nobody else."""

    @abstractmethod
    def credential_source(self, setup: Setup) -> CredentialSource:
        """Where its sessions come from; called before there is a link."""
