"""Sends signed requests to a venue: TLS 1.3, warm connections, no redirects, nothing sent twice.

- The bytes of URL and body go out as custody made them: re-encoding would break the signature.
- Whether anything was written decides what a failure means: no connection → `Unsent`; anything later →
  `Lost`.
- A venue that wants no requests for a while (the adapter's `busy_until`) is sent nothing until then, however long that
  is, but cancels: the kill switch does not wait.  Questions leave `SPARE` of each minute's weight for orders.

The network is not trusted: an attacker who controls it can at most delay or cut requests; TLS pins the
venue's certificate authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final

import aiohttp
from yarl import URL

from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError, TallystickError
from tallystick.schemas.signing import Signed
from tallystick.venues import Adapter
from tallystick.venues.limits import Allowance

CONNECT_S: Final = 2.0
# Beyond a request's validity an answer will not come to anything new.
ANSWER_S: Final = 3.0
# A kill of 100 single orders goes out at once over these; each stays warm.
CONNECTIONS: Final = 16
KEEP_ALIVE_S: Final = 75.0
SPARE: Final = 20  # one part in 20
MAX_BODY: Final = 4_194_304


class Unsent(TallystickError):
    """Not a byte of the request was written."""


class Lost(TallystickError):
    """The request was written, in whole or in part, and no answer came."""


class VenueClient:
    """Connections to one venue.

    - `adapter`: the venue's; `host`: its host and port, from the trust root; `tls`: a client context that allows nothing
      below TLS 1.3; `clock`: Unix nanoseconds.
    - `written`: called when a request's body has been handed to the connection; for tests.
    - `allowance`: what the venue allows; its `until` is the Unix ns before which it wants no requests.
    """

    def __init__(
        self,
        adapter: Adapter,
        host: str,
        tls: ssl.SSLContext,
        clock: Callable[[], int],
        written: Callable[[], None] | None = None,
    ) -> None:
        if tls.minimum_version < ssl.TLSVersion.TLSv1_3 or tls.verify_mode != ssl.CERT_REQUIRED:
            raise ConfigError("VENUE_TLS", "the TLS context must verify the venue and allow nothing below TLS 1.3")
        self._adapter = adapter
        self._origin = f"https://{host}"
        self._clock = clock
        self.allowance = Allowance(adapter.WEIGHT_MINUTE - adapter.WEIGHT_MINUTE // SPARE)
        traces = []
        if written is not None:
            traces.append(_tell(written))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls, limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S, enable_cleanup_closed=False
            ),
            timeout=aiohttp.ClientTimeout(total=ANSWER_S + CONNECT_S, connect=CONNECT_S, sock_read=ANSWER_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "tallystick"},
            skip_auto_headers=("Content-Type",),
            trace_configs=traces,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def warm(self) -> None:
        """Open a connection, or keep one open, with a request that needs no key; not while the venue wants none."""
        if self._clock() < self.allowance.until:
            return
        try:
            url = URL(f"{self._origin}{self._adapter.PING}", encoded=True)
            async with self._session.get(url, allow_redirects=False) as answer:
                self._heed(answer, await _body(answer))
        except (Lost, aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Unsent("VENUE_AWAY", f"{self._origin}: {type(exc).__name__}: {exc}") from exc

    async def send(self, request: Signed) -> tuple[int, bytes]:
        """Send `request` as it is; the answer's status and body.  Raises `Unsent` or `Lost`."""
        if not request.url.startswith(f"{self._origin}/"):
            raise Unsent("ENDPOINT", f"a request for {request.url.partition('?')[0][:96]}, not for {self._origin}")
        self._hold_back(request)
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=dict(request.headers),
                data=request.body.encode("ascii") or None,
                allow_redirects=False,
            ) as answer:
                body = await _body(answer)
                self._heed(answer, body)
                return answer.status, body
        except aiohttp.ClientConnectorError as exc:
            # Raised by the connector alone, before a request exists on a connection.
            raise Unsent("VENUE_AWAY", f"{self._origin}: {type(exc).__name__}: {exc}") from exc
        except aiohttp.ConnectionTimeoutError as exc:
            raise Unsent("VENUE_AWAY", f"{self._origin}: no connection within {CONNECT_S} s") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Lost("NO_ANSWER", f"{self._origin}: {type(exc).__name__}: {exc}") from exc

    def _hold_back(self, request: Signed) -> None:
        """Count the request.  Raises `Unsent` where the venue would not have it now; cancels go out all the same."""
        now = self._clock()
        weight = self._adapter.weight(request.method, URL(request.url, encoded=True).path)
        wait = 0
        if request.method == "POST":
            wait = max(0, self.allowance.until - now)
        elif request.method == "GET":
            wait = self.allowance.wait(weight, now)
        if wait:
            raise Unsent("VENUE_BACKOFF", f"the venue wants no such request for {wait / SECOND:.1f} s")
        self.allowance.asked(weight, now)

    def _heed(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        now = self._clock()
        self.allowance.answered(answer.headers.get(self._adapter.USED_WEIGHT, ""), now)
        self.allowance.back_off(self._adapter.busy_until(answer.status, answer.headers, body, now))


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise Lost("VENUE_ANSWER", f"more than {MAX_BODY} bytes")
    return bytes(body)


def _tell(written: Callable[[], None]) -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()

    async def on_chunk(*_: object) -> None:
        written()

    trace.on_request_chunk_sent.append(on_chunk)
    return trace
