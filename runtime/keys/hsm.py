"""PKCS#11 tokens (OASIS PKCS#11 v2.40/v3.0) through python-pkcs11: keys that are born inside and stay there.

SoftHSM is the default; `TALLYSTICK_PKCS11_MODULE` names another module (CloudHSM, YubiHSM, Nitrokey …).

Rules:

- A process has at most one token open (SoftHSM reads its configuration once per initialisation).  It
  may open another after closing the first.
- Keys are addressed by CKA_ID, an id is used once, labels are for people.
- A private key that could ever have left the token is refused, and so is a public key that does not
  belong to its private key (a token's public objects are not authenticated).
- One lock serialises every call into the module: python-pkcs11 initialises modules without locking and
  releases the GIL.
- Fork does not carry a token over: a child opens its own.

SoftHSM is no custody boundary by itself: whoever can read a process's memory, or the token's files and
its PIN, has the keys.  A hardware or network module bounds the same attacker to signing while present.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets as entropy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_named_curve_parameters

from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.ed25519 import BadSignature, verify
from tallystick.schemas.errors import ConfigError, Unverified

if TYPE_CHECKING:
    from pkcs11 import _pkcs11

MODULE_VARIABLE: Final = "TALLYSTICK_PKCS11_MODULE"
SOFTHSM_PATHS: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
# DER of OID 1.3.101.112: SoftHSM wants the OID of Ed25519, not the curve's name (RFC 8410, PKCS#11 v3.0 2.3.10).
_ED25519_PARAMS: Final = bytes.fromhex("06032b6570")
_P256_PARAMS: Final = encode_named_curve_parameters("secp256r1")
# PKCS#11 pads a label with blanks to 32 bytes.
_LABEL_BYTES: Final = 32
_PROBE: Final = b"tallystick key check\x00"

# Guarantees: one thread inside the module at a time, and the fields of `_state` change together.
_lock = threading.RLock()


class _State:
    """What this process has loaded and opened; `_lock` guards it."""

    library: _pkcs11.lib | None = None
    token: Token | None = None
    clear_errors: Callable[[], object] | None = None


_state = _State()

_ADVICE: Final[dict[type[pkcs11.PKCS11Error], tuple[str, str]]] = {
    pkcs11.PinIncorrect: ("HSM_PIN", "wrong PIN; the keystore must be the one that was made with this token"),
    pkcs11.PinInvalid: ("HSM_PIN", "the PIN has characters that the token does not accept"),
    pkcs11.PinLenRange: ("HSM_PIN", "the PIN has a length that the token does not accept"),
    pkcs11.PinExpired: ("HSM_PIN", "the PIN expired; set a new one with the module's own tool"),
    pkcs11.PinLocked: (
        "HSM_LOCKED",
        "the PIN is locked after too many wrong tries; the security officer must set it anew",
    ),
    pkcs11.UserPinNotInitialized: ("HSM_PIN", "the token has no user PIN yet; the security officer must set one"),
    pkcs11.NoSuchToken: ("HSM_TOKEN", "there is no such token; `tallystick init` makes the tokens of a deployment"),
    pkcs11.MultipleTokensReturned: ("HSM_TOKEN", "several tokens have this label; rename all but one"),
    pkcs11.TokenNotPresent: ("HSM_TOKEN", "the token is not present; plug it in"),
    pkcs11.DeviceRemoved: ("HSM_TOKEN", "the token was removed; plug it in and start again"),
}


def module_path() -> str:
    """The PKCS#11 module in use.  Raises `ConfigError` where there is none."""
    chosen = os.environ.get(MODULE_VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise ConfigError("HSM_MODULE", f"{MODULE_VARIABLE} names {chosen}, which is no file; correct or unset it")
        return chosen
    for path in SOFTHSM_PATHS:
        if Path(path).is_file():
            return path
    raise ConfigError(
        "HSM_MODULE",
        "no PKCS#11 module: SoftHSM (libsofthsm2.so) is not installed; `apt-get install softhsm2` installs it, "
        f"or set {MODULE_VARIABLE} to the module of another HSM",
    )


def _error_clearer() -> Callable[[], object]:
    """`ERR_clear_error` of the libcrypto that this process shares with the module, if it shares one."""
    for name in ("libcrypto.so.3", "libcrypto.so.1.1"):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:
            continue
        library.ERR_clear_error.restype = None
        return cast("Callable[[], object]", library.ERR_clear_error)
    return lambda: None


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """One thread in the module, and its errors as `ConfigError` about `what`.

    SoftHSM leaves entries in the thread's OpenSSL error queue, which Python's ssl would take for failures of
    its next read and close a healthy connection: the queue is emptied after each call.
    """
    with _lock:
        try:
            yield
        except pkcs11.PKCS11Error as exc:
            code, advice = _ADVICE.get(type(exc), ("HSM_FAILED", "the module refused"))
            raise ConfigError(code, f"{what}: {advice} ({type(exc).__name__})") from exc
        finally:
            if _state.clear_errors is None:
                _state.clear_errors = _error_clearer()
            _state.clear_errors()


def _initialise(directory: Path) -> _pkcs11.lib:
    """The library, freshly initialised on the tokens below `directory`; `_lock` is held."""
    if _state.token is not None:
        raise ConfigError(
            "HSM_BUSY", f"this process has the token {_state.token.label!r} open; close it before it uses another"
        )
    # SoftHSM's configuration wants absolute paths; in memory it cannot go stale when the folder moves.
    conf = os.memfd_create("softhsm2.conf", os.MFD_CLOEXEC)
    try:
        text = (
            f"directories.tokendir = {directory.resolve() / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.write(conf, text.encode())
        os.environ["SOFTHSM2_CONF"] = f"/proc/self/fd/{conf}"
        if _state.library is None:
            module = module_path()
            try:
                _state.library = pkcs11.lib(module)
            except pkcs11.PKCS11Error as exc:
                raise ConfigError("HSM_MODULE", f"{module} is no PKCS#11 module that can be loaded: {exc}") from exc
        else:
            _state.library.reinitialize()
    finally:
        os.environ.pop("SOFTHSM2_CONF", None)
        os.close(conf)
    return _state.library


def create_token(directory: Path, label: str, so_pin: Secret, pin: Secret) -> None:
    """Make a SoftHSM token in `directory` (made with mode 0700).  Other modules have their own tools.

    Raises `ConfigError`, also where `directory` exists already.
    """
    raw_label = label.encode()
    if not 0 < len(raw_label) <= _LABEL_BYTES:
        raise ConfigError("HSM_LABEL", f"a token label has 1 to {_LABEL_BYTES} bytes, got {len(raw_label)}")
    module = module_path()
    try:
        directory.mkdir(mode=0o700)
        (directory / "tokens").mkdir(mode=0o700)
    except OSError as exc:
        raise ConfigError("HSM_TOKEN", f"cannot make a token in {directory}: {exc.strerror}") from exc
    with _asking(f"making token {label!r} in {directory}"):
        library = _initialise(directory)
        slots = [
            s for s in library.get_slots(token_present=True) if TokenFlag.TOKEN_INITIALIZED not in s.get_token().flags
        ]
        if not slots:
            raise ConfigError("HSM_TOKEN", f"{module} offers no free slot; make the token with the module's own tool")
        # python-pkcs11 has no C_InitToken, and softhsm2-util takes PINs from the command line or a terminal only.
        function = ctypes.CDLL(module).C_InitToken
        function.argtypes = (ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        function.restype = ctypes.c_ulong
        officer = so_pin.reveal().encode()
        code = function(slots[0].slot_id, officer, len(officer), raw_label.ljust(_LABEL_BYTES))
        if code != 0:
            raise ConfigError("HSM_TOKEN", f"making token {label!r} in {directory}: C_InitToken answers {code:#x}")
        with library.get_token(token_label=label).open(rw=True, so_pin=so_pin.reveal()) as session:
            session.init_pin(pin.reveal())


def _raw_point(point: bytes, size: int) -> bytes:
    """CKA_EC_POINT without its DER OCTET STRING header, which modules may (PKCS#11 v2.40) or may not (v3.0) put."""
    return point[2:] if len(point) == size + 2 and point[:2] == bytes((4, size)) else point


class HsmSigner:
    """An Ed25519 key in an open token; `public` is the raw public key (32 bytes, RFC 8032)."""

    def __init__(self, token: Token, private: SignMixin, public: bytes, name: str) -> None:
        """For `Token.signer`."""
        self.public = public
        self._token = token
        self._private = private
        self._name = name

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`.  Raises `ConfigError` if the token is closed or gone."""
        with _asking(f"signing with {self._name}"):
            self._token.check_open()
            return bytes(self._private.sign(data, mechanism=Mechanism.EDDSA))

    def __repr__(self) -> str:
        return f"HsmSigner({self._name}, public={self.public.hex()})"


class P256Signer:
    """A P-256 key in an open token; `public` is its public key, signatures are ECDSA with SHA-256 in DER."""

    def __init__(self, token: Token, private: SignMixin, public: ec.EllipticCurvePublicKey, name: str) -> None:
        """For `Token.p256_signer`."""
        self.public = public
        self._token = token
        self._private = private
        self._name = name

    def sign(self, data: bytes) -> bytes:
        """The DER signature of `data`.  Raises `ConfigError` if the token is closed or gone."""
        with _asking(f"signing with {self._name}"):
            self._token.check_open()
            raw = bytes(self._private.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA))
        return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))

    def __repr__(self) -> str:
        return f"P256Signer({self._name})"


class Token:
    """An open token, logged in as its user; a context manager."""

    def __init__(self, session: pkcs11.Session, label: str) -> None:
        """For `Token.open`."""
        self._session = session
        self.label = label

    @classmethod
    def open(cls, directory: Path, label: str, pin: Secret, *, writable: bool = False) -> Token:
        """Open the token `label`; `directory` is where SoftHSM has it (other modules ignore it).

        `writable` is needed to make keys.  Raises `ConfigError`.
        """
        if "softhsm" in Path(module_path()).name and not (directory / "tokens").is_dir():
            raise ConfigError(
                "HSM_TOKEN", f"no token in {directory}; `tallystick init` makes the tokens of a deployment"
            )
        with _asking(f"opening token {label!r} in {directory}"):
            library = _initialise(directory)
            session = library.get_token(token_label=label).open(rw=writable, user_pin=pin.reveal())
            _state.token = token = cls(session, label)
        return token

    def close(self) -> None:
        """Log out; signers of this token refuse from here on.  Closing twice is harmless."""
        with _lock:
            if _state.token is not self:
                return
            _state.token = None
            # Where the token is gone, the login went with it.
            with suppress(pkcs11.DeviceRemoved, pkcs11.SessionHandleInvalid):
                self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise `ConfigError` if this token was closed."""
        if _state.token is not self:
            raise ConfigError("HSM_CLOSED", f"token {self.label!r} is closed")

    def generate_ed25519(self, key_id: bytes, label: str) -> bytes:
        """Make an Ed25519 key pair that only signs and never leaves; returns the raw public key.

        Raises `ConfigError`, also where `key_id` is taken.
        """
        self._generate(key_id, label, KeyType.EC_EDWARDS, _ED25519_PARAMS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN)
        return self.signer(key_id).public

    def generate_p256(self, key_id: bytes, label: str) -> ec.EllipticCurvePublicKey:
        """Make a P-256 key pair that only signs and never leaves; returns the public key.  Raises `ConfigError`."""
        self._generate(key_id, label, KeyType.EC, _P256_PARAMS, Mechanism.EC_KEY_PAIR_GEN)
        return self.p256_signer(key_id).public

    def _generate(self, key_id: bytes, label: str, kind: KeyType, params: bytes, mechanism: Mechanism) -> None:
        name = self._name(key_id)
        with _asking(f"making {name}"):
            self.check_open()
            if list(self._session.get_objects({Attribute.ID: key_id})):  # read whole: an open search blocks the session
                raise ConfigError("HSM_DUPLICATE", f"{name} exists already; a key id is used once")
            domain = self._session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
            domain.generate_keypair(
                id=key_id,
                label=label,
                store=True,
                mechanism=mechanism,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template={
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.MODIFIABLE: False,
                    Attribute.DERIVE: False,
                    Attribute.DECRYPT: False,
                    Attribute.UNWRAP: False,
                    Attribute.SIGN_RECOVER: False,
                },
                public_template={Attribute.MODIFIABLE: False},
            )

    def signer(self, key_id: bytes) -> HsmSigner:
        """The Ed25519 key `key_id`.

        Raises `ConfigError` (no such key, or one that could have left the token) and `Unverified`
        (the public key in the token does not belong to it).
        """
        name = self._name(key_id)
        private, point = self._find(key_id, KeyType.EC_EDWARDS, name)
        public = _raw_point(point, 32)
        signer = HsmSigner(self, private, public, name)
        probe = _PROBE + entropy.token_bytes(32)
        try:
            verify(public, signer.sign(probe), probe)
        except BadSignature as exc:
            raise Unverified("HSM_KEY", f"{name}: the public key in the token is not that of the private key") from exc
        return signer

    def p256_signer(self, key_id: bytes) -> P256Signer:
        """The P-256 key `key_id`.  Raises as `signer` does."""
        name = self._name(key_id)
        private, point = self._find(key_id, KeyType.EC, name)
        probe = _PROBE + entropy.token_bytes(32)
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _raw_point(point, 65))
            signer = P256Signer(self, private, public, name)
            public.verify(signer.sign(probe), probe, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError) as exc:
            raise Unverified("HSM_KEY", f"{name}: the public key in the token is not that of the private key") from exc
        return signer

    def _find(self, key_id: bytes, kind: KeyType, name: str) -> tuple[SignMixin, bytes]:
        """The private key and the encoded point of its public key."""
        with _asking(f"looking for {name}"):
            self.check_open()
            query = {Attribute.ID: key_id, Attribute.KEY_TYPE: kind}
            privates = list(self._session.get_objects({**query, Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            publics = list(self._session.get_objects({**query, Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
            if len(privates) != 1 or len(publics) != 1:
                raise ConfigError(
                    "HSM_KEY",
                    f"{name}: found {len(privates)} private and {len(publics)} public keys, expected one of each",
                )
            private, public = privates[0], publics[0]
            if not isinstance(private, SignMixin):
                raise ConfigError("HSM_KEY", f"{name}: the module calls it a private key but does not let it sign")
            if (
                not private[Attribute.SENSITIVE]
                or private[Attribute.EXTRACTABLE]
                or not private[Attribute.NEVER_EXTRACTABLE]
            ):
                raise ConfigError("HSM_EXTRACTABLE", f"{name} can leave or has left the token; make a new key")
            return private, bytes(public[Attribute.EC_POINT])

    def _name(self, key_id: bytes) -> str:
        return f"key {key_id.decode('ascii', 'backslashreplace')!r} of token {self.label!r}"

    def __repr__(self) -> str:
        return f"Token({self.label!r})"
