"""The zone's `replay` is run by `tallystick replay DIR --into ZONE`, which has something to play; alone it has nothing."""

from __future__ import annotations

from tallystick.replay.zone import Replayer
from tallystick.runtime.bus.context import Context
from tallystick.schemas.errors import ConfigError


class Alone(Replayer):
    """Says how a replay is started."""

    async def start(self, ctx: Context) -> None:
        """Raise `ConfigError`."""
        raise ConfigError("REPLAY", f"nothing to play: tallystick replay DIR --into {ctx.config.directory}")


COMPONENT = Alone
