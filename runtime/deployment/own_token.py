"""The token of a component that has one of its own name: opened for as long as the process runs, its uses counted."""

from __future__ import annotations

import contextlib

from tallystick.infra.nats.topology import KEYMASTER
from tallystick.runtime.deployment.folder import LEASED, pin_name
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.uses import Uses


def open_own_token(ctx: ServiceContext) -> Token:
    """The component's token.  A full disk stops the counting, and keeps nobody from signing.  Raises `ConfigError`.

    Where its key is changed while it runs, keys can be made in it.
    """
    name, deployment = ctx.component, ctx.deployment
    changes = deployment.config.rotation is not None and name in LEASED and name != KEYMASTER
    token = Token.open(deployment.token(name), name, ctx.secret(pin_name(name)), writable=changes)
    ctx.at_stop(token.close)
    uses = Uses(deployment.state(name), token.uses)

    async def count() -> None:
        while True:
            try:
                await uses.keep()
            except OSError as exc:
                ctx.log.warning("the uses of keys were not counted", error=str(exc))

    def save() -> None:
        with contextlib.suppress(OSError):
            uses.save()

    ctx.at_stop(save)
    ctx.spawn(count())
    return token
