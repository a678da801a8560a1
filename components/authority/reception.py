"""Who stands at the authority's door: the component that the certificate names, at its pace, and how one is refused."""

from __future__ import annotations

import msgspec
from aiohttp import web

from tallystick.components.authority.door import ASKS_BURST, ASKS_PER_SECOND, Pace
from tallystick.runtime.deployment.folder import OPERATOR
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys import pki
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import TallystickError, Unverified


class Reception:
    """Asks each request who it is, and tells of those that are refused."""

    def __init__(self, ctx: ServiceContext, deployment: str) -> None:
        self._ctx = ctx
        self._deployment = deployment
        self._pace = Pace(ASKS_BURST, ASKS_PER_SECOND)
        self._refused: dict[str, int] = {}

    async def enter(self, request: web.Request) -> tuple[str, bytes]:
        """The component that asks, and its certificate (DER).  Raises `Unverified`."""
        transport = request.transport
        ssl_object = transport.get_extra_info("ssl_object") if transport is not None else None
        der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
        if not der:
            raise Unverified("CLIENT_CERTIFICATE", "no client certificate")
        component = pki.spiffe_component(der, self._deployment)
        await self._pace.wait(component)
        return component, der

    async def enter_operator(self, request: web.Request) -> None:
        """Raise `Unverified` unless the operator asks."""
        component, _ = await self.enter(request)
        if component != OPERATOR:
            raise Unverified("IDENTITY", f"{component} may not revoke: only the operator's certificate does")

    def refuse(self, request: web.Request, exc: TallystickError) -> web.Response:
        """The answer to a request that is refused, and one notice a second of each kind.

        Refusals that come in floods do not push out what else was said.
        """
        self._ctx.metrics.add("sessions_refused")
        second = self._ctx.clock() // SECOND
        if self._refused.get(exc.code) != second:
            self._refused[exc.code] = second
            self._ctx.notice(f"SESSION_REFUSED_{exc.code}"[:64], f"{request.remote}: {exc.text}"[:500])
        return web.Response(status=403, body=msgspec.json.encode({"code": exc.code, "text": exc.text}))
