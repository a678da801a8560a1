"""A client of the vault: hvac over one TLS connection, with an end to everything.

- TLS 1.3 at least, the anchor is the CA that was named, and our own certificate is shown; nothing of the environment
  counts: no proxy, no `VAULT_*`, no `~/.vault-token`, no `.netrc`; no redirect is followed.
- An answer has `TIMEOUT_S` in all and `MAX_ANSWER` bytes, however slowly it comes.
- What went wrong is one of two: the vault is away (`VaultAway`: not there, sealed, overloaded, slow, not the one it
  should be), which may pass; or it refuses (`VaultRefused`), which does not.
- Calls block: they are for threads, one at a time (`Worker`).

The vault is trusted with the secrets that lie in it: an attacker who controls it can at most show wrong ones, or none.
The network is not trusted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import hvac
import hvac.exceptions
import msgspec
import requests
import urllib3
from cryptography import x509
from requests.adapters import HTTPAdapter

from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import Unreachable, Unverified

CONNECT_S: Final = 2.0
TIMEOUT_S: Final = 5.0
MAX_ANSWER: Final = 262_144
_CHUNK: Final = 16_384
# How much of what the vault says is passed on.
_SAID: Final = 200

T = TypeVar("T")


class VaultAway(Unreachable):
    """The vault does not answer, is sealed, or is not the one that it should be: it may come back."""


class VaultRefused(Unverified):
    """The vault refuses what was asked: the token, the secret id or the path."""


class VaultNothing(VaultRefused):
    """Nothing lies at that path."""


class Grant(msgspec.Struct, frozen=True):
    """A token and how long it lives from when it was asked for: seconds; `renewable`."""

    token: Secret
    seconds: int
    renewable: bool


class Wrapped(msgspec.Struct, frozen=True):
    """A secret id in its wrapping: the token that unwraps it, once, and the accessor to destroy it by."""

    token: Secret
    accessor: str


class VaultClient:
    """One vault at `address` (`https://…`), as who `tls` shows; `mount` is the KV's.  Used by one thread at a time."""

    def __init__(self, address: str, tls: ssl.SSLContext, mount: str) -> None:
        self.address = address
        self.mount = mount
        self._tls = tls
        session = requests.Session()
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"
        session.mount("https://", _Bounded(tls))
        # Without this a mistaken address would go out in the clear.
        session.mount("http://", _Nothing())
        self._session = session
        self._hvac = hvac.Client(address, token="", session=session, allow_redirects=False)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    # -- who we are -----------------------------------------------------------------------------

    def use(self, token: Secret) -> None:
        """Ask with this token from now on; an empty one is none."""
        self._hvac.token = token.reveal()

    def login(self, method: str, proof: Mapping[str, Secret | str]) -> Grant:
        """Log in at `auth/METHOD/login` and use the token.  Raises `VaultAway` or `VaultRefused`."""
        said = {name: value.reveal() if isinstance(value, Secret) else value for name, value in proof.items()}
        self.use(Secret(""))
        auth = self._ask("login", lambda: self._hvac.write_data(f"auth/{method}/login", data=said), _Login).auth
        grant = _grant(auth)
        self.use(grant.token)
        return grant

    def renew(self) -> Grant:
        """Renew the token in use.  Raises `VaultAway` or `VaultRefused`."""
        return _grant(self._ask("renewal", self._hvac.auth.token.renew_self, _Login).auth)

    def revoke(self) -> None:
        """Revoke the token in use, and forget it.  Raises `VaultAway` or `VaultRefused`."""
        try:
            self._call(self._hvac.auth.token.revoke_self)
        finally:
            self.use(Secret(""))

    # -- secret ids -----------------------------------------------------------------------------

    def wrap_secret_id(self, role: str, seconds: int) -> Wrapped:
        """A new secret id of `role`, in a wrapping that lives so long.  Raises `VaultAway` or `VaultRefused`."""
        made = self._ask(
            "wrapping",
            lambda: self._hvac.write_data(f"auth/approle/role/{role}/secret-id", data={}, wrap_ttl=f"{seconds}s"),
            _Wrapping,
        ).wrap_info
        return Wrapped(Secret(made.token), made.wrapped_accessor)

    def destroy_secret_id(self, role: str, accessor: str) -> None:
        """See to it that nobody logs in with that one.  Raises `VaultAway` or `VaultRefused` (it may be spent)."""
        path = f"auth/approle/role/{role}/secret-id-accessor/destroy"
        self._call(lambda: self._hvac.write_data(path, data={"secret_id_accessor": accessor}))

    def unwrap_secret_id(self, wrapping: Secret, role: str) -> Secret:
        """The secret id of `role` behind a wrapping token.

        Raises `VaultRefused`: `VAULT_WRAPPING_USED` for a token that is spent, unwrapped by somebody else or too old;
        `VAULT_WRAPPING_FOREIGN` for one that holds anything else than a secret id of that role.
        """
        self.use(Secret(""))
        try:
            found = self._ask(
                "wrapping",
                lambda: self._hvac.write_data("sys/wrapping/lookup", data={"token": wrapping.reveal()}),
                _Looked,
            ).data.creation_path
            if found != f"auth/approle/role/{role}/secret-id":
                raise VaultRefused(
                    "VAULT_WRAPPING_FOREIGN", f"a wrapping of {found[:_SAID]!a}, not of {role}'s secret id"
                )
            self.use(wrapping)
            return Secret(self._ask("wrapping", self._hvac.sys.unwrap, _Unwrapped).data.secret_id)
        except VaultRefused as exc:
            if exc.code != "VAULT_DENIED":
                raise
            raise VaultRefused(
                "VAULT_WRAPPING_USED",
                f"{role}: somebody else has unwrapped its secret id, or it is too old: {exc.text}",
            ) from exc
        finally:
            self.use(Secret(""))

    # -- secrets --------------------------------------------------------------------------------

    def read(self, path: str) -> dict[str, Secret]:
        """The secret at `path` of the mount: text by name.  Raises `VaultAway` or `VaultRefused`."""
        kv = self._hvac.secrets.kv.v2
        found = self._ask(
            path,
            lambda: kv.read_secret_version(path=path, mount_point=self.mount, raise_on_deleted_version=True),
            _Read,
        )
        return {name: Secret(value) for name, value in found.data.data.items()}

    def write(self, path: str, secrets: Mapping[str, Secret]) -> None:
        """Replace the secret at `path` of the mount.  Raises `VaultAway` or `VaultRefused`."""
        data = {name: value.reveal() for name, value in secrets.items()}
        kv = self._hvac.secrets.kv.v2
        self._call(lambda: kv.create_or_update_secret(path=path, secret=data, mount_point=self.mount))

    def patch(self, path: str, secrets: Mapping[str, Secret]) -> None:
        """Replace single values of the secret at `path` of the mount, unread.  Raises `VaultAway` or `VaultRefused`."""
        data = {name: value.reveal() for name, value in secrets.items()}
        # hvac's own patch reads first, which this may not.
        where, kind = f"/v1/{self.mount}/data/{path}", {"Content-Type": "application/merge-patch+json"}
        self._call(lambda: self._hvac.adapter.request("patch", where, headers=kind, json={"data": data}))

    # -- the vault itself -----------------------------------------------------------------------

    def sealed(self) -> SealStatus:
        """Whether it is set up and sealed, and how many shares it waits for.  Needs no token.  Raises `VaultAway`."""
        return self._ask("seal status", self._hvac.sys.read_seal_status, SealStatus)

    def unseal(self, share: Secret) -> SealStatus:
        """Give it one share of the unseal key.  Raises `VaultAway`; `VaultRefused` for a wrong one."""
        return self._ask("unsealing", lambda: self._hvac.sys.submit_unseal_key(share.reveal()), SealStatus)

    def shown(self) -> x509.Certificate:
        """The certificate that it shows to a new connection.  Raises `VaultAway`."""
        host, _, port = self.address.removeprefix("https://").rpartition(":")
        try:
            with (
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as plain,
                self._tls.wrap_socket(plain, server_hostname=host.strip("[]")) as wrapped,
            ):
                der = wrapped.getpeercert(binary_form=True)
        except OSError as exc:
            raise VaultAway("VAULT_UNREACHABLE", f"{self.address} does not answer: {_said(exc)}") from exc
        return x509.load_der_x509_certificate(der or b"")

    def initialize(self) -> tuple[Secret, Secret]:
        """Set up a new vault's barrier: its unseal key, one share, and the root token.  Raises `VaultAway`."""
        made = self._ask("initialization", lambda: self._hvac.sys.initialize(1, 1), _Made)
        return Secret(made.keys[0]), Secret(made.root_token)

    def serving(self) -> bool:
        """Whether it is unsealed and serves.  Needs no token.  Raises `VaultAway`."""
        # Else than with 200 the answer is no object.
        return isinstance(self._call(lambda: self._hvac.sys.read_health_status(method="GET")), dict)

    def get(self, path: str) -> Mapping[str, Any]:
        """What the API has at `path`, for the set-up and for operators.  Raises `VaultAway` or `VaultRefused`."""
        return self._data(path, lambda: self._hvac.read(path))

    def put(self, path: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write there, as `get`; the answer's data, empty where it has none."""
        return self._data(path, lambda: self._hvac.write_data(path, data=dict(data)))

    def delete(self, path: str) -> None:
        """Delete there, as `get`."""
        self._call(lambda: self._hvac.delete(path))

    def _data(self, what: str, call: Callable[[], Any]) -> Mapping[str, Any]:
        answer = self._call(call)
        return (self._converted(what, answer, _Data).data or {}) if isinstance(answer, dict) else {}

    def _ask(self, what: str, call: Callable[[], Any], kind: type[T]) -> T:
        return self._converted(what, self._call(call), kind)

    def _converted(self, what: str, answer: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as exc:
            # What it holds instead stays out of the text: it may be a secret.
            raise VaultAway("VAULT_ANSWER", f"{self.address}: no answer of a vault to {what}: {exc}") from None

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except hvac.exceptions.VaultDown as exc:
            text = f"{self.address} is sealed, or not active: {_said(exc)}; whoever has its unseal key opens it"
            raise VaultAway("VAULT_SEALED", text) from exc
        except hvac.exceptions.InvalidPath as exc:
            raise VaultNothing("VAULT_DENIED", f"{self.address} has nothing there: {_said(exc)}") from exc
        except (
            hvac.exceptions.InvalidRequest, hvac.exceptions.Unauthorized, hvac.exceptions.Forbidden,
        ) as exc:  # fmt: skip
            raise VaultRefused("VAULT_DENIED", f"{self.address}: {_said(exc)}") from exc
        except hvac.exceptions.VaultError as exc:
            raise VaultAway("VAULT_UNREACHABLE", f"{self.address} answers {type(exc).__name__}: {_said(exc)}") from exc
        except requests.exceptions.SSLError as exc:
            if _cut(exc):
                raise VaultAway("VAULT_UNREACHABLE", f"{self.address} broke off: {_said(_reason(exc))}") from exc
            text = f"{self.address} is not the vault that it should be: {_said(_reason(exc))}; nothing was said to it: is it the one of `[vault]`?"
            raise VaultAway("VAULT_TLS", text) from exc
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            why = _reason(exc)
            text = f"{self.address} does not answer: {type(why).__name__}: {_said(why)}; does it run, and is that its address?"
            raise VaultAway("VAULT_UNREACHABLE", text) from exc
        except Exception as exc:  # noqa: BLE001 - an answer that is no vault's breaks the library in ways of its own
            # What it holds stays out of the text: it may be a secret.
            raise VaultAway("VAULT_ANSWER", f"{self.address}: no answer of a vault: {type(exc).__name__}") from None


class SealStatus(msgspec.Struct, frozen=True):
    """`sys/seal-status`, as far as it is looked at: `n` shares, `t` of them open it, `progress` were given."""

    initialized: bool
    sealed: bool
    t: int = 0
    n: int = 0
    progress: int = 0


class _Made(msgspec.Struct, frozen=True):
    keys: list[str]
    root_token: str


class _Data(msgspec.Struct, frozen=True):
    data: dict[str, Any] | None = None


class _Auth(msgspec.Struct, frozen=True):
    client_token: str
    lease_duration: int
    renewable: bool


class _Login(msgspec.Struct, frozen=True):
    auth: _Auth


class _Wrap(msgspec.Struct, frozen=True):
    token: str
    wrapped_accessor: str


class _Wrapping(msgspec.Struct, frozen=True):
    wrap_info: _Wrap


class _Creation(msgspec.Struct, frozen=True):
    creation_path: str


class _Looked(msgspec.Struct, frozen=True):
    data: _Creation


class _SecretId(msgspec.Struct, frozen=True):
    secret_id: str


class _Unwrapped(msgspec.Struct, frozen=True):
    data: _SecretId


class _Version(msgspec.Struct, frozen=True):
    data: dict[str, str]


class _Read(msgspec.Struct, frozen=True):
    data: _Version


def _grant(auth: _Auth) -> Grant:
    if auth.lease_duration <= 0:
        raise VaultRefused("VAULT_TOKEN", "the vault gave a token without an end: give its role a period or a TTL")
    return Grant(Secret(auth.client_token), auth.lease_duration, auth.renewable)


def _cut(exc: BaseException | None) -> bool:
    """Whether a handshake was broken off, as by a server that stops, and not refused."""
    while exc is not None:
        if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _reason(exc: Exception) -> Exception:
    """What happened, without the library's words around it: they say where, as we do, and are long."""
    while exc.args and isinstance(exc.args[0], Exception):
        exc = exc.args[0]
    found = getattr(exc, "reason", None)
    return _reason(found) if isinstance(found, Exception) else exc


def _said(exc: Exception) -> str:
    """What the vault, or the library, says: one line that every log, notice and terminal takes."""
    return ascii(" ".join(str(exc)[: 4 * _SAID].split()))[1:-1][:_SAID]


class _Bounded(HTTPAdapter):
    """The transport: our TLS, and an end to how long and how much an answer is."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._ends = 0.0
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kw)

    def send(self, request: requests.PreparedRequest, *_: Any, **kw: Any) -> requests.Response:
        self._ends = time.monotonic() + TIMEOUT_S
        # What else the session would say (certificates, proxies) is settled in the context.
        return super().send(request, stream=True, timeout=(CONNECT_S, TIMEOUT_S), verify=True)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        body = io.BytesIO()
        try:
            while part := resp.read1(_CHUNK):
                body.write(part)
                if body.tell() > MAX_ANSWER or time.monotonic() > self._ends:
                    raise requests.exceptions.ReadTimeout(
                        f"{body.tell()} bytes in {TIMEOUT_S:.0f} s or less; at most {MAX_ANSWER} bytes are taken"
                    )
        except BaseException:
            resp.close()
            raise
        resp.release_conn()
        body.seek(0)
        whole = urllib3.HTTPResponse(body, headers=resp.headers, status=resp.status, preload_content=False)
        return super().build_response(req, whole)


class _Nothing(HTTPAdapter):
    """What sends nothing."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        raise requests.exceptions.InvalidSchema(f"{request.url}: a vault is asked over TLS alone")


class Worker:
    """Calls that block, one at a time, in threads that end with the process; for one event loop.

    A call that takes longer than `patience` seconds is given up: nobody waits for its thread, and nothing else is asked
    until it has ended.
    """

    def __init__(self, patience: float = 2 * TIMEOUT_S) -> None:
        self._patience = patience
        # Whether the call before has ended; its thread may live a moment longer.
        self._over = threading.Event()
        self._over.set()
        self._turn = asyncio.Lock()

    async def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises; `VaultAway` where it takes too long."""
        async with self._turn:
            if not self._over.is_set():
                raise VaultAway("VAULT_UNREACHABLE", "a request from before has not ended yet")
            over = self._over = threading.Event()
            done: concurrent.futures.Future[T] = concurrent.futures.Future()
            done.set_running_or_notify_cancel()

            def run() -> None:
                try:
                    result = call()
                except BaseException as exc:  # noqa: BLE001 - raised to whoever waits
                    over.set()
                    done.set_exception(exc)
                else:
                    over.set()
                    done.set_result(result)

            threading.Thread(target=run, name="vault", daemon=True).start()
            try:
                return await asyncio.wait_for(asyncio.wrap_future(done), self._patience)
            except TimeoutError:
                raise VaultAway("VAULT_UNREACHABLE", f"no answer within {self._patience:.0f} s: given up") from None
