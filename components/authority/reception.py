"""Who stands at the authority's door: the component that the certificate names, at its pace, and how one is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from cryptography import x509

from tallystick.components.authority.door import ASKS_BURST, ASKS_PER_SECOND, Pace
from tallystick.runtime.deployment.folder import OPERATOR
from tallystick.runtime.deployment.service import ServiceContext
from tallystick.runtime.keys import pki
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import MAX_REQUEST
from tallystick.schemas.errors import Malformed, TallystickError, Unverified

# What the certificate's component (and the certificate, DER) asks with a body; gives what is answered, as JSON.
Answer = Callable[[str, bytes, bytes], Awaitable[object]]


class Reception:
    """Asks each request who it is, has it answered, and tells of those that are refused.  `app` is what is served."""

    def __init__(self, ctx: ServiceContext, deployment: str) -> None:
        self._ctx = ctx
        self._deployment = deployment
        self._pace = Pace(ASKS_BURST, ASKS_PER_SECOND)
        self._refused: dict[tuple[str, str], int] = {}
        self.app = web.Application(client_max_size=MAX_REQUEST)

    def post(self, path: str, answer: Answer, *, operator: bool = False) -> None:
        """Have requests to `path` answered by `answer`; `operator`: those of the operator's certificate alone."""

        async def on_request(request: web.Request) -> web.Response:
            component = ""
            try:
                component, der = await self._enter(request)
                if operator and component != OPERATOR:
                    raise Unverified(
                        "IDENTITY", f"{component} may not ask {path}: only the operator's certificate does"
                    )
                said = await answer(component, der, await _body(request))
            except TallystickError as exc:
                return self._refuse(request, component, exc)
            return web.Response(body=msgspec.json.encode(said))

        self.app.router.add_post(path, on_request)

    async def _enter(self, request: web.Request) -> tuple[str, bytes]:
        """The component that asks, and its certificate (DER).  Raises `Unverified`."""
        transport = request.transport
        ssl_object = transport.get_extra_info("ssl_object") if transport is not None else None
        der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
        if not der:
            raise Unverified("CLIENT_CERTIFICATE", "no client certificate")
        component = pki.spiffe_component(der, self._deployment)
        await self._pace.wait(component)
        # TLS looked at it when the connection was made, which may stand for as long as somebody asks on it.
        _, ends = pki.lifetime(x509.load_der_x509_certificate(der))
        if self._ctx.clock() >= ends:
            raise Unverified("CERTIFICATE_ENDED", f"the certificate of {component} has ended")
        return component, der

    def _refuse(self, request: web.Request, component: str, exc: TallystickError) -> web.Response:
        """The answer to a request that is refused, and one notice a second of each kind and component.

        Refusals that come in floods do not push out what else was said, least of all of others.
        """
        self._ctx.metrics.add("sessions_refused")
        second = self._ctx.clock() // SECOND
        if self._refused.get((component, exc.code)) != second:
            self._refused[component, exc.code] = second
            self._ctx.notice(f"SESSION_REFUSED_{exc.code}"[:64], f"{request.remote}: {exc.text}"[:500])
        return web.Response(status=403, body=msgspec.json.encode({"code": exc.code, "text": exc.text}))


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise Malformed("REQUEST_SIZE", f"more than {MAX_REQUEST} bytes") from exc
