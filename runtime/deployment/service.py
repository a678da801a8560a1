"""What a component of the system gets besides the bus: the set-up of its process."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import msgspec

from tallystick.infra.nats import topology
from tallystick.runtime.bus.component import Component
from tallystick.runtime.bus.link import CredentialSource
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.trust import TrustRoot


class Setup(msgspec.Struct, frozen=True):
    """What a process is made from, before it has a session."""

    deployment: Deployment
    trust: TrustRoot
    spec: topology.Component
    boot: bytes
    tls: ssl.SSLContext
    certificate: bytes
    secrets: dict[str, Secret]
    clock: Callable[[], int]
    entropy: Callable[[int], bytes]
    log: Any


class OwnSource(Component):
    """A component whose sessions do not come from the authority: the authority itself, and nobody else."""

    def credential_source(self, setup: Setup) -> CredentialSource:
        """Where its sessions come from; called before there is a link."""
        raise NotImplementedError
