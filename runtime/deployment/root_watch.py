"""Whoever decides over money says by which trust root, on `control.config.<component>`, and compares with the others.

- The signed note itself is stated at start and then every `STATE_S`: what one component knows of, all know of, and the
  record shows by which document whatever was decided.
- A note that verifies and is newer than our own, or of our number and another text: we run under a document that was
  taken out of force.  Whoever put an old one back, files and all, is found out by what the bus still holds.
- A note that is older than ours is stated by somebody who runs under what is not in force any more: people hear of it.

The stater is not trusted: nobody can make up a newer document, since only the operator root signs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tallystick.runtime.bus.received import Received
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.deployment.terms import require_signed
from tallystick.schemas.security import RootInForce
from tallystick.schemas.subjects import subject
from tallystick.schemas.trust import TrustRoot, open_successor

STATE_S: Final = 60.0
# Newest messages of SECURITY that hold a statement of everybody's: lists and heartbeats come five times a second.
TAIL: Final = 1_024


class RootWatch:
    """See the module docstring.  `superseded` is the document that ours was replaced by, once one was heard of."""

    def __init__(self, ctx: ServiceContext, on_superseded: Callable[[TrustRoot], None] = lambda _: None) -> None:
        self._ctx = ctx
        self._note = ctx.deployment.newest_note()
        self._digest = ctx.trust.digest
        self._on_superseded = on_superseded
        self._heard: set[bytes] = set()
        self.superseded: TrustRoot | None = None

    def start(self) -> None:
        """Compare the files with what was signed, and subscribe.  Raises `ConfigError` where they differ."""
        require_signed(self._ctx.deployment, self._ctx.trust)
        self._ctx.subscribe("control.config.>", self._on_config, start=TAIL)
        self._ctx.spawn(self._state())

    async def _state(self) -> None:
        to = subject("control.config", component=self._ctx.component)
        while True:
            self._ctx.publish(to, self._ctx.new(RootInForce, note=self._note))
            await asyncio.sleep(STATE_S)

    def _on_config(self, received: Received) -> None:
        for event in received.events:
            if isinstance(event, RootInForce):
                self._compare(received.subject.component, open_successor(event.note, self._ctx.trust), received.live)

    def _compare(self, who: str, other: TrustRoot, live: bool) -> None:
        """`who` states `other`: verified, and maybe not ours."""
        digest, ours = other.digest, self._ctx.trust
        if digest == self._digest:
            return
        if other.number >= ours.number:
            if self.superseded is None or self.superseded.number < other.number:
                self.superseded = other
                text = f"{who} decides by trust root {other.number} ({digest.hex()[:16]}), we by {ours.number}"
                self._ctx.notice("TRUST_ROOT_NEWER", text, digest)
                self._on_superseded(other)
        elif live and digest not in self._heard:
            self._heard.add(digest)
            self._ctx.notice(
                "TRUST_ROOT_OLDER", f"{who} decides by trust root {other.number}, we by {ours.number}", digest
            )
