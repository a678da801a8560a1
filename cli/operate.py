"""What an operator does with a running deployment: up, status, kill, rearm, arm, revoke, reinstate.

The functions are what the commands of `main` call; they raise `TallystickError` and print nothing.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec

from tallystick.cli import breaker
from tallystick.cli.status import describe
from tallystick.cli.stopping import Stopped, signals, unless
from tallystick.runtime.bus.post import NotConnected, post
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment import vault
from tallystick.runtime.deployment.certificates import certify, ensure
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.proof import api_key_file
from tallystick.runtime.deployment.supervisor import Supervisor, SupervisorFailed
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import client_context
from tallystick.runtime.keys.key_info import public_pem
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.arming import MAX_LEASE_NS, ArmLease
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.control import ArmRequest, CorrectRequest, RearmRequest
from tallystick.schemas.enrolment import (
    GrantRequest,
    RevocationRequest,
    SessionRefusal,
    StandingAnswer,
    StandingRequest,
)
from tallystick.schemas.errors import NOT_DECODED, ConfigError, Malformed, Unreachable
from tallystick.schemas.grants import KeyGrant
from tallystick.schemas.methods import ApiKey
from tallystick.schemas.trust import (
    MAX_REASON,
    OPERATOR_KEY_NAME,
    Cap,
    Correction,
    Rearm,
    Revocation,
    sign_document,
)

HOUR_NS: Final = 3_600_000_000_000
REVOKE_S: Final = 10.0
AGAIN_S: Final = 0.1
MAX_ANSWER: Final = 65_536


async def supervise(deployment: Deployment, keystore: Keystore, report: Callable[[str], None]) -> int:
    """Run the deployment until SIGINT or SIGTERM; the exit code.  Raises what kept it from starting."""
    supervisor = Supervisor(deployment, keystore, report=report)
    with signals() as stop:
        stop.at_once = supervisor.end_at_once
        try:
            await unless(stop, supervisor.start())
            folder = deployment.directory
            for line in describe(deployment):
                report(line)
            report(f"logs: {folder}/log; watch: tallystick watch {folder}; stop: Ctrl-C")
            report(f"every order is denied until you arm it, in another terminal: tallystick arm {folder} --hours 8")
            await unless(stop, supervisor.failed())
        except Stopped:
            report("stopping")
        except SupervisorFailed as exc:
            report(f"stopping, since nothing is watched any more: {exc}")
            return 1
        finally:
            await supervisor.stop()
    report("stopped")
    return 1 if supervisor.unclean else 0


async def kill(deployment: Deployment, scope: str, reason: str) -> dict[str, Any]:
    """Trip a breaker at once; no key is needed to stop."""
    return await breaker.kill(deployment.run, scope, reason)


async def status(deployment: Deployment) -> dict[str, Any]:
    """The breaker's state, as `breaker.status`."""
    return await breaker.status(deployment.run)


class Operator:
    """The operator's own key, which lies in the token that no process opens: open for as long as this is entered."""

    def __init__(self, deployment: Deployment, keystore: Keystore) -> None:
        self._token = TokenProcess(deployment.token("operator"), "operator", keystore[layout.pin_name("operator")])
        self._signer = self._token.signer(layout.KEY_PERSON)

    def sign(self, document: msgspec.Struct) -> str:
        """The document as a note."""
        return sign_document(document, (OPERATOR_KEY_NAME, self._signer))

    def close(self) -> None:
        """Close the token."""
        self._token.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sign(deployment: Deployment, keystore: Keystore, document: msgspec.Struct) -> str:
    with Operator(deployment, keystore) as operator:
        return operator.sign(document)


def lease_ns(hours: Decimal) -> int:
    """A lease's length in nanoseconds.  Raises `ConfigError` for hours that none can have."""
    if not (hours.is_finite() and 0 < hours <= Decimal(MAX_LEASE_NS) / HOUR_NS and int(hours * HOUR_NS) > 0):
        raise ConfigError("ARM_HOURS", f"a lease lasts above 0 and at most 12 hours, got {hours}")
    return int(hours * HOUR_NS)


def narrowed(caps: Sequence[Cap], wanted: Sequence[str]) -> tuple[Cap, ...]:
    """`caps` with those that `wanted` says (`ASSET=ORDER/HOUR`, units of the asset), no higher.  Raises `ConfigError`."""
    found = {cap.asset: cap for cap in caps}
    for text in wanted:
        asset, _, most = text.partition("=")
        order, _, hourly = most.partition("/")
        try:
            before = found[asset]
            cap = Cap(account=before.account, asset=asset, max_order=Decimal(order), max_hourly=Decimal(hourly))
        except (KeyError, InvalidOperation, Malformed) as exc:
            raise ConfigError("ARM_CAP", f"{text[:80]!r} is no ASSET=ORDER/HOUR of {', '.join(found)}") from exc
        if cap.max_order > before.max_order or cap.max_hourly > before.max_hourly:
            most = f"{before.max_order:f}/{before.max_hourly:f}"
            raise ConfigError("ARM_CAP", f"{text[:80]!r} is more than the operator signed: {asset}={most}")
        found[asset] = cap
    return tuple(found.values())


async def arm(deployment: Deployment, keystore: Keystore, hours: Decimal, caps: Sequence[str] = ()) -> ArmLease:
    """Let execution trade for `hours` from now (at most 12), within `caps` (`narrowed`) or all that the trust root allows."""
    length = lease_ns(hours)
    root = deployment.load_trust()[-1]
    now = time.time_ns()
    lease = ArmLease(
        deployment=deployment.name,
        component="execution",
        hardware_key=root.hardware_key("execution"),
        venues=(deployment.config.venue.name,),
        caps=narrowed(root.caps, caps),
        start=now,
        until=now + length,
    )
    note = await asyncio.to_thread(_sign, deployment, keystore, lease)
    await breaker.demand(deployment.run, ArmRequest(note=note))
    return lease


async def rearm(deployment: Deployment, keystore: Keystore, scope: str) -> None:
    """Close a tripped breaker with the operator's signature, for this very trip."""
    tripped = (await status(deployment))["tripped"]
    trip = next((t for t in tripped if t["scope"] == scope), None)
    if trip is None:
        raise ConfigError(
            "NOT_TRIPPED", f"{scope} is not tripped; tripped: {[t['scope'] for t in tripped] or 'nothing'}"
        )
    document = Rearm(deployment=deployment.name, scope=scope, since=trip["since"])
    note = await asyncio.to_thread(_sign, deployment, keystore, document)
    await breaker.demand(deployment.run, RearmRequest(note=note))


async def correct(deployment: Deployment, keystore: Keystore, correction: Correction) -> None:
    """Set right what the record says of a position or an order, by the operator's signature."""
    deployment.load_trust()[-1].instrument(correction.venue, correction.symbol)
    note = await asyncio.to_thread(_sign, deployment, keystore, correction)
    named = {"strategy": correction.strategy, "venue": correction.venue, "symbol": correction.symbol}
    answer = await breaker.demand(deployment.run, CorrectRequest(note=note, **named))
    if not answer["stored"]:
        raise ConfigError(
            "CORRECTION_UNSTORED", "the broker has not confirmed it: look at `tallystick audit sql` before again"
        )


async def _authority(deployment: Deployment, keystore: Keystore, path: str, request: Any) -> bytes:
    """The authority's answer to the operator.  Raises `ConfigError`."""
    config = deployment.config
    await asyncio.to_thread(ensure, deployment, keystore, (layout.OPERATOR,), time.time_ns())
    passphrase = keystore[layout.passphrase_name(layout.OPERATOR)]
    tls = client_context(deployment.issuing_ca, deployment.identity(layout.OPERATOR), passphrase)
    url = f"https://{config.host}:{config.authority.port}{path}"
    status, body = await _post(url, msgspec.json.encode(request), tls)
    if status != HTTPStatus.OK:
        try:
            refusal = msgspec.json.decode(body, type=SessionRefusal)
        except NOT_DECODED:
            refusal = SessionRefusal("AUTHORITY_REFUSED", f"{url} answered {status}")
        raise ConfigError(refusal.code, refusal.text)
    return body


async def _post(url: str, body: bytes, tls: ssl.SSLContext) -> tuple[int, bytes]:
    """Status and body.  Raises `ConfigError`.

    Somebody may be crowding the door: the operator tries again, where the connection was not even made.
    """
    ends = time.monotonic() + REVOKE_S
    while True:
        try:
            return await post(url, body, tls, timeout_s=REVOKE_S, limit=MAX_ANSWER)
        except Unreachable as exc:
            refused = not isinstance(exc, NotConnected) or isinstance(exc.__cause__, ConnectionRefusedError)
            if refused or time.monotonic() > ends:
                raise ConfigError("AUTHORITY_UNREACHABLE", exc.text) from exc
            await asyncio.sleep(AGAIN_S)


async def _standing(deployment: Deployment, keystore: Keystore, component: str) -> StandingAnswer:
    body = await _authority(deployment, keystore, "/v1/standing", StandingRequest(component))
    try:
        return msgspec.json.decode(body, type=StandingAnswer)
    except NOT_DECODED as exc:
        raise Malformed("AUTHORITY_ANSWER", f"/v1/standing: {exc}") from exc


async def revoke(
    deployment: Deployment, keystore: Keystore, component: str, reason: str, operator: Operator | None = None
) -> int:
    """Revoke a component until it is reinstated; how many sessions that ended, at the broker and at every verifier.

    Whoever has its certificate, its own process as well, gets no session any more.  `operator`: whose token is open already.
    """
    known = await _standing(deployment, keystore, component)
    document = Revocation(
        deployment=deployment.name,
        component=component,
        number=known.number + 1,
        revoked=True,
        since=time.time_ns(),
        reason=reason[:MAX_REASON],
    )
    sign = operator.sign if operator else functools.partial(_sign, deployment, keystore)
    note = await asyncio.to_thread(sign, document)
    body = await _authority(deployment, keystore, "/v1/revoke", RevocationRequest(note))
    return msgspec.json.decode(body, type=dict[str, int])["revoked"]


async def reinstate(
    deployment: Deployment, keystore: Keystore, component: str, reason: str, operator: Operator | None = None
) -> None:
    """Admit a revoked component again, with a new key, certificate and API key (if it has one); the old ones stay worthless.

    A crash before the certificate is there leaves it without one that counts: run again, it makes another.  `operator` as in
    `revoke`.
    """
    from tallystick.runtime.bus.snapshots import forget

    known = await _standing(deployment, keystore, component)
    if known.number == 0:
        raise ConfigError("NOT_REVOKED", f"{component} was never revoked")
    # Certificates count whole seconds: the new one is of the second after everything that was issued before.
    since = (time.time_ns() // SECOND + 1) * SECOND
    document = Revocation(
        deployment=deployment.name,
        component=component,
        number=known.number + 1,
        revoked=False,
        since=since,
        reason=reason[:MAX_REASON],
    )
    sign = operator.sign if operator else functools.partial(_sign, deployment, keystore)
    if isinstance(deployment.load_trust()[-1].component(component).method, ApiKey):
        await _grant_api_key(deployment, keystore, component, sign)
    note = await asyncio.to_thread(sign, document)
    await _authority(deployment, keystore, "/v1/revoke", RevocationRequest(note))
    # What it kept in whosever hands is not taken up: it reads the whole stream.
    forget(deployment.state(component))
    await asyncio.to_thread(certify, deployment, keystore, (component,), since)


async def _grant_api_key(
    deployment: Deployment, keystore: Keystore, component: str, sign: Callable[[msgspec.Struct], str]
) -> None:
    """A new first API key; a crash before the authority knows it leaves a component that is revoked as before."""
    first = api_key_file(deployment, component, keystore[layout.passphrase_name(component)]).begin()
    document = KeyGrant(deployment=deployment.name, component=component, first=first, issued=time.time_ns())
    note = await asyncio.to_thread(sign, document)
    await _authority(deployment, keystore, "/v1/grant", GrantRequest(note))


def public_key(
    deployment: Deployment, keystore: Keystore, component: str, report: Callable[[str], None] = lambda _: None
) -> str:
    """The key to register at the venue for `component` (custody or portfolio), as PEM (SPKI).

    `report` is told what it waits for.
    """
    name, key_id = layout.pin_name(component), layout.KEY_VENUE
    if name in keystore.secrets:
        # Before the first `up`: nothing was changed yet.
        pin = keystore[name]
    else:
        with vault.opened(deployment, keystore, report) as its:
            found = its.secrets(component)
        if name not in found:
            raise ConfigError("VAULT_SECRET_MISSING", f"the vault holds no {name} for {component}")
        pin = found[name]
        key_id = (
            found[layout.key_id_name(component)].reveal().encode() if layout.key_id_name(component) in found else key_id
        )
    with Token.open(deployment.token(component), component, pin) as token:
        return public_pem(token.signer(key_id).public)


def set_api_key(keystore: Keystore, component: str, api_key: Secret) -> None:
    """Keep the id that the venue gave for that key; the next `up` moves it into the vault, and it takes effect."""
    if not api_key.reveal().isascii() or not api_key.reveal().isalnum():
        raise ConfigError("API_KEY", "a venue's API key id is letters and digits")
    keystore.secrets[layout.api_key_name(component)] = api_key
    keystore.save()
