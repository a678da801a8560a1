"""Sends signed requests to a venue: TLS 1.3, warm connections, no redirects, nothing sent twice.

- The bytes of URL and body go out as custody made them: re-encoding would break the signature.
- Whether anything was written decides what a failure means: no connection → `Unsent`; anything later →
  `Lost`.
- A rate limit (the adapter's `BUSY`) holds new orders back until the time that the venue names.  Cancels are sent all
  the same: the kill switch does not wait.

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

CONNECT_S: Final = 2.0
# Beyond a request's validity an answer will not come to anything new.
ANSWER_S: Final = 3.0
# A kill of 100 single orders goes out at once over these; each stays warm.
CONNECTIONS: Final = 16
KEEP_ALIVE_S: Final = 75.0
MAX_BACKOFF_S: Final = 600
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
    - `backoff_until`: Unix ns before which the venue wants no new orders.
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
        self.backoff_until = 0
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
        """Open a connection, or keep one open, with a request that needs no key."""
        try:
            url = URL(f"{self._origin}{self._adapter.PING}", encoded=True)
            async with self._session.get(url, allow_redirects=False) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Unsent("VENUE_AWAY", f"{self._origin}: {type(exc).__name__}: {exc}") from exc

    async def send(self, request: Signed) -> tuple[int, bytes]:
        """Send `request` as it is; the answer's status and body.  Raises `Unsent` or `Lost`."""
        if not request.url.startswith(f"{self._origin}/"):
            raise Unsent("ENDPOINT", f"a request for {request.url.partition('?')[0][:96]}, not for {self._origin}")
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=dict(request.headers),
                data=request.body.encode("ascii") or None,
                allow_redirects=False,
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise Lost("VENUE_ANSWER", f"more than {MAX_BODY} bytes")
                if answer.status in self._adapter.BUSY:
                    self._back_off(answer.headers.get("Retry-After", ""))
                return answer.status, bytes(body)
        except aiohttp.ClientConnectorError as exc:
            # Raised by the connector alone, before a request exists on a connection.
            raise Unsent("VENUE_AWAY", f"{self._origin}: {type(exc).__name__}: {exc}") from exc
        except aiohttp.ConnectionTimeoutError as exc:
            raise Unsent("VENUE_AWAY", f"{self._origin}: no connection within {CONNECT_S} s") from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Lost("NO_ANSWER", f"{self._origin}: {type(exc).__name__}: {exc}") from exc

    def _back_off(self, seconds: str) -> None:
        wait = min(int(seconds), MAX_BACKOFF_S) if seconds.isascii() and seconds.isdigit() else 1
        self.backoff_until = max(self.backoff_until, self._clock() + wait * SECOND)


def _tell(written: Callable[[], None]) -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()

    async def on_chunk(*_: object) -> None:
        written()

    trace.on_request_chunk_sent.append(on_chunk)
    return trace
