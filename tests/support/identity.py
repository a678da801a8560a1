"""A running authority at whose door tests stand as whoever they like, with whatever they show.

The deployment runs in a thread of its own, for all tests of a module; notices to security people are collected there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import uvloop

from tallystick.runtime.bus.post import post
from tallystick.runtime.deployment import certificates
from tallystick.runtime.deployment.folder import Deployment, passphrase_name, pin_name
from tallystick.runtime.keys.identity import Identity
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.enrolment import Asked, SessionRequest, proof_bytes
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.security import CredentialIssued, Notice
from tests.support.deployment import Running, running
from tests.support.waiting import until

Evidence = Callable[[Asked], Any]


def always(evidence: Any) -> Evidence:
    """The same, whatever is asked for."""
    return lambda _: evidence


class Door:
    """The authority's door, and what people are told."""

    def __init__(self, deployment: Deployment, keystore: Keystore) -> None:
        self.deployment = deployment
        self.keystore = keystore
        self.trust = deployment.load_trust()[-1]
        self.notices: list[Notice] = []
        self.issued: list[CredentialIssued] = []
        self.desk: Running
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        config = deployment.config
        self.url = f"https://{config.host}:{config.authority.port}"

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with running(self.deployment, self.keystore) as self.desk:
            audit = await self.desk.context("audit")

            def note(received: Any) -> None:
                self.notices.extend(e for e in received.events if isinstance(e, Notice))
                self.issued.extend(e for e in received.events if isinstance(e, CredentialIssued))

            audit.subscribe(("guard.authority", "cred.>"), note)
            audit.open()
            await audit.caught_up()
            self._ready.set()
            await self._stop.wait()

    def _thread(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run())
        except BaseException as exc:  # noqa: BLE001 - raised again where the tests are
            self._failed = exc
        finally:
            self._ready.set()

    @contextlib.contextmanager
    def running(self) -> Iterator[Door]:
        """Up for as long as the block lasts."""
        thread = threading.Thread(target=self._thread)
        thread.start()
        self._ready.wait(60)
        try:
            if self._failed is None:
                yield self
        finally:
            if self._failed is None:
                self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            if self._failed is not None:
                raise self._failed

    def restart(self) -> None:
        """Kill the authority, and wait for its next boot."""
        ready = self.deployment.run / "authority.ready"
        pid = ready.read_text()
        self._loop.call_soon_threadsafe(self.desk.supervisor.kill, "authority")
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            if ready.exists() and ready.read_text() not in ("", pid):
                return
            time.sleep(0.05)
        raise AssertionError("the authority did not come back")

    def identity(self, name: str) -> Identity:
        """The certificate of `name`."""
        certificates.ensure(self.deployment, self.keystore, (name,), time.time_ns())
        return Identity(
            self.deployment.name,
            self.deployment.issuing_ca,
            self.deployment.identity(name),
            self.keystore[passphrase_name(name)],
        )

    async def post(self, path: str, body: object, identity: Identity) -> tuple[int, dict[str, str]]:
        """Status and answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = await post(self.url + path, data, identity.tls, timeout_s=10.0, limit=65_536)
        return status, json.loads(answer)

    async def session(
        self,
        name: str,
        evidence: Evidence | None,
        *,
        identity: Identity | None = None,
        boot: bytes | None = None,
        key: SessionKey | None = None,
        held: SessionKey | None = None,
    ) -> str:
        """Ask for a session of `name` and show what `evidence` gives; "" when it is given, else the refusal's code."""
        identity = identity or self.identity(name)
        boot, key = boot or os.urandom(16), key or SessionKey(os.urandom(32))
        asked = Asked(self.deployment.name, name, boot, key.public, identity.fingerprint)
        said = proof_bytes(self.deployment.name, name, boot, key.public, identity.fingerprint)
        request: dict[str, Any] = msgspec.to_builtins(
            SessionRequest(
                boot=boot.hex(),
                component=name,
                proof=key.sign(said).hex(),
                session_key=key.public.hex(),
                renewal=(held or key).sign(said).hex(),
            )
        )
        shown = None if evidence is None else evidence(asked)
        if asyncio.iscoroutine(shown):
            shown = await shown
        status, answer = await self.post("/v1/session", {**request, "evidence": shown}, identity)
        assert (status == 200) == ("credential" in answer), answer
        return answer.get("code", "")

    async def told(self, code: str, since: int = 0) -> Notice:
        """The notice of a refusal with this code."""
        name = f"SESSION_REFUSED_{code}"

        def found() -> list[Notice]:
            return [n for n in self.notices[since:] if n.code == name]

        await until(found, f"the notice {name}", 30)
        return found()[-1]

    def token(self, label: str) -> TokenProcess:
        """One of the deployment's tokens, opened with its PIN: a thief's who has that as well, or its owner's."""
        return TokenProcess(self.deployment.token(label), label, self.keystore[pin_name(label)])


def digest(text: str) -> str:
    """SHA-256 (hex) of hex."""
    return hashlib.sha256(bytes.fromhex(text)).hexdigest()
