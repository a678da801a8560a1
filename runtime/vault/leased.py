"""A component's secrets, held under a lease: logged in, read, renewed, revoked.

- `open` logs in and reads, and waits as long as the vault is away or a secret id was stolen: a component that starts
  without a vault starts when there is one.
- `run` renews the lease after two thirds of its life.  While the vault is away, work goes on until the lease ends; then
  `require_live` fails, and the component goes on with what needs no lease.  Whatever came between, a killed server, a
  sealed one, a revoked token, ends with a new login, and with nobody's help.
- Each turn is told once, as a notice: away, ended, refused, back.
- Secrets that have changed meanwhile are for the next start of the process: it is told so (`VAULT_SECRETS_CHANGED`).
- `close` revokes the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.vault.client import Grant, VaultAway, VaultClient, VaultRefused, Worker
from tallystick.runtime.vault.lease import Lease
from tallystick.runtime.vault.logins import Login
from tallystick.schemas.errors import ConfigError

# How often the lease is looked at, and the vault asked again where it was away.
TICK_S: Final = 0.25
RETRY_S: Final = (0.25, 0.5, 1.0, 2.0)
# How long a stop waits for the token's revocation; it ends by itself, too.
GOODBYE_S: Final = 1.0

Notify = Callable[[str, str], object]


class Leased:
    """See the module docstring.  Owns `client`.

    `path` is the secret in the vault, `names` what it must hold; `notice` takes the code and the text of a notice.
    """

    def __init__(
        self,
        client: VaultClient,
        login: Login,
        path: str,
        names: tuple[str, ...],
        *,
        clock: Callable[[], int],
        notice: Notify = lambda _, __: None,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.lease = Lease(monotonic)
        self.notice = notice
        self._client = client
        self._login = login
        self._path = path
        self._names = names
        self._clock = clock
        self._monotonic = monotonic
        self._worker = Worker()
        self._said = ""
        self._ended = False
        self._renewable = False
        self._seconds = 0
        self._secrets: Mapping[str, Secret] = {}

    def require_live(self, now: int) -> None:
        """Raise `VaultLeaseEnded` unless the lease holds at `now` (Unix ns)."""
        self.lease.require_live(now)

    def live(self, now: int) -> bool:
        """Whether the lease holds at `now` (Unix ns)."""
        return self.lease.live(now)

    async def open(self) -> Mapping[str, Secret]:
        """Log in, and read the secrets.  Raises `ConfigError` for a secret that is not there."""
        attempt = 0
        while True:
            try:
                self._secrets = await self._enter()
            except (VaultAway, VaultRefused) as exc:
                self._say(exc.code, exc.text)
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
            else:
                self._back()
                return self._secrets

    async def reread(self) -> Mapping[str, Secret]:
        """The secrets as they are in the vault now, under the lease that there is.  Raises as `open`, and does not wait."""
        found = await self._worker(lambda: self._client.read(self._path))
        self._require(found)
        self._secrets = found
        return found

    async def replace(self, path: str, secrets: Mapping[str, Secret]) -> None:
        """Replace values of another's secret, for the keymaster.  Raises `VaultAway`, `VaultRefused`."""
        await self._worker(lambda: self._client.patch(path, secrets))

    async def run(self) -> None:
        """Keep the lease, for as long as the component runs."""
        attempt = 0
        while True:
            await asyncio.sleep(TICK_S if not attempt else RETRY_S[min(attempt, len(RETRY_S)) - 1])
            now = self._clock()
            live = self.lease.live(now)
            if not live and not self._ended:
                self._ended = True
                self.notice("VAULT_LEASE_ENDED", f"nothing is done that needs a secret of the vault: {self.lease.why}")
            if not self.lease.due(now):
                attempt = 0
                continue
            renewing = live and self._renewable
            try:
                if renewing:
                    await self._keep()
                else:
                    self._changed(await self._enter())
            except VaultRefused as exc:
                if renewing:
                    # The token is revoked: what it still had of its time is over.
                    self.lease.lost(f"{exc.code}: {exc.text}")
                self._say(exc.code, exc.text)
                attempt += 1
            except (VaultAway, ConfigError) as exc:
                # Secrets that were deleted meanwhile may be written again.
                self.lease.waiting(f"{exc.code}: {exc.text}")
                self._say(exc.code, exc.text)
                attempt += 1
            else:
                attempt = 0
                self._back()

    async def close(self) -> None:
        """Revoke the token, where the vault hears it in time, and let go."""
        with contextlib.suppress(VaultAway, VaultRefused, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._worker(self._client.revoke)
        self.lease.lost("it was given back")
        self._client.close()

    async def _enter(self) -> Mapping[str, Secret]:
        asked, asked_here = self._clock(), self._monotonic()

        def enter() -> tuple[Grant, dict[str, Secret]]:
            return self._login(self._client), self._client.read(self._path)

        self._seconds = 0
        grant, secrets = await self._worker(enter)
        self._require(secrets)
        self._take(grant, asked, asked_here)
        return secrets

    def _require(self, secrets: Mapping[str, Secret]) -> None:
        missing = [name for name in self._names if name not in secrets]
        if missing:
            raise ConfigError(
                "VAULT_SECRET_MISSING",
                f"{self._client.mount}/{self._path} holds no {', '.join(missing)}: write it there",
            )

    async def _keep(self) -> None:
        asked, asked_here = self._clock(), self._monotonic()
        self._take(await self._worker(self._client.renew), asked, asked_here)

    def _take(self, grant: Grant, asked: int, asked_here: int) -> None:
        # A renewal that gives less nears the token's last end: the next time we log in again, while this one holds.
        self._renewable = grant.renewable and grant.seconds >= self._seconds
        self._seconds = grant.seconds
        self.lease.granted(asked, asked_here, grant.seconds)

    def _changed(self, secrets: Mapping[str, Secret]) -> None:
        if any(secrets[name] != self._secrets.get(name) for name in self._names):
            self._secrets = secrets
            self.notice("VAULT_SECRETS_CHANGED", f"{self._path} holds other secrets than at our start: start us again")

    def _say(self, code: str, text: str) -> None:
        if code != self._said:
            self._said = code
            self.notice(code, text)

    def _back(self) -> None:
        self._ended = False
        if self._said:
            self._said = ""
            self.notice("VAULT_BACK", "the vault answers, and has given a lease")
