"""The observer's process: loads the user's `Component` and hosts it.

The user's code is not trusted: it runs in an account that can read what observers may read and publish
`guard` and `dead` of its own name alone, whatever it tries.
"""

from __future__ import annotations

from tallystick.runtime.bus.component import Component, Context
from tallystick.runtime.deployment.service import Service, ServiceContext
from tallystick.runtime.deployment.usercode import load_user_class
from tallystick.schemas.errors import ConfigError


class Observer(Service):
    """Hosts the user's component, which gets the narrow `Context`."""

    def __init__(self) -> None:
        self._user = Component()

    async def start(self, ctx: ServiceContext) -> None:
        """Load the code that deployment.toml names.  Raises `ConfigError`."""
        deployment = ctx.deployment
        config = next((o for o in deployment.config.observers if o.component == ctx.component), None)
        if config is None:
            raise ConfigError("OBSERVER", f"deployment.toml has no observer for {ctx.component}")
        self._user = load_user_class(config.module, deployment.directory, Component)
        ctx.log.info("observer loaded", module=config.module)
        await self._user.start(Context(ctx))
        ctx.at_stop(self._user.stop)

    async def ready(self) -> None:
        """The user's turn."""
        await self._user.ready()


SERVICE = Observer
