"""The observer's process: loads the user's `Component` and is it.

The user's code is not trusted: it runs in an account that can read what observers may read and publish
`guard` and `dead` of its own name alone, whatever it tries.
"""

from __future__ import annotations

from tallystick.components import Component, ConfigError, Context
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.usercode import load_user_class


class Observer(Component):
    """Passes everything on to the user's component."""

    def __init__(self) -> None:
        self._user: Component | None = None

    async def start(self, ctx: Context) -> None:
        """Load the code that deployment.toml names.  Raises `ConfigError`."""
        deployment: Deployment = ctx.config
        config = next((o for o in deployment.config.observers if o.component == ctx.component), None)
        if config is None:
            raise ConfigError("OBSERVER", f"deployment.toml has no observer for {ctx.component}")
        self._user = load_user_class(config.module, deployment.directory, Component)
        ctx.log.info("observer loaded", module=config.module)
        await self._user.start(ctx)

    async def ready(self) -> None:
        """The user's turn."""
        if self._user is not None:
            await self._user.ready()

    async def stop(self) -> None:
        """The user's turn."""
        if self._user is not None:
            await self._user.stop()


COMPONENT = Observer
