"""The zone's `replay` is run by `tallystick replay DIR --into ZONE`, which has something to play; alone it has nothing."""

from __future__ import annotations

from tallystick.replay.zone import Replayer
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas.errors import ConfigError


class Alone(Replayer):
    """Says how a replay is started."""

    async def start(self, ctx: ServiceContext) -> None:
        """Raise `ConfigError`."""
        raise ConfigError("REPLAY_NOTHING", f"nothing to play: tallystick replay DIR --into {ctx.deployment.directory}")


SERVICE = Alone
