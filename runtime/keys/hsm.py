"""PKCS#11 tokens (OASIS PKCS#11 v2.40/v3.0) through python-pkcs11: keys that are born inside, or come in once, and stay there.

SoftHSM is the default; `[tokens]` of `deployment.toml` names tokens of other modules by their URIs (`uri`).

Rules:

- A process has at most one token open (SoftHSM reads its configuration once per initialisation).  It may open another
  after closing the first; `token_process` is for who needs two.
- One thread of the process touches the module (`owner`).
- Keys are addressed by CKA_ID, an id is used once, labels are for people.
- A private key that can leave the token is refused, one that was born inside and ever could as well, and so is a public key
  that does not belong to its private key (a token's public objects are not authenticated).
- A key that was made elsewhere is used only where `imported` allows it.
- Fork does not carry a token over: a child opens its own.

SoftHSM is no custody boundary by itself: whoever can read a process's memory, or the token's files and
its PIN, has the keys.  A hardware or network module bounds the same attacker to signing while present.
"""

from __future__ import annotations

import ctypes
import os
import secrets as entropy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.types import SignMixin

from tallystick.runtime.keys import module
from tallystick.runtime.keys.imports import (
    CURVES,
    ED25519_PARAMS,
    PROTECTED,
    Imported,
    PrivateKey,
    import_private,
    import_secret,
)
from tallystick.runtime.keys.keystore import Secret
from tallystick.runtime.keys.signers import Ask, Digest, EcdsaSigner, HsmSigner, MacKey, RsaSigner
from tallystick.runtime.keys.turns import turn
from tallystick.runtime.keys.uri import Place
from tallystick.schemas.ed25519 import BadSignature, verify
from tallystick.schemas.errors import ConfigError, Unverified

# PKCS#11 pads a label with blanks to 32 bytes.
_LABEL_BYTES: Final = 32
_PROBE: Final = b"tallystick key check\x00"
RSA_BITS: Final = (2048, 3072, 4096)
PRIVATE_CLASSES: Final = (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY)
T = TypeVar("T")


class _State:
    """The open token of this process; changed in the modules' thread alone."""

    token: Token | None = None


_state = _State()


def _forget() -> None:
    _state.token = None


os.register_at_fork(after_in_child=_forget)


def create_token(directory: Path, label: str, so_pin: Secret, pin: Secret) -> None:
    """Make a SoftHSM token in `directory` (made with mode 0700).  Other modules have their own tools.

    Raises `ConfigError`, also where `directory` exists already.
    """
    raw_label = label.encode()
    if not 0 < len(raw_label) <= _LABEL_BYTES:
        raise ConfigError("HSM_LABEL", f"a token label has 1 to {_LABEL_BYTES} bytes, got {len(raw_label)}")
    path = module.softhsm()
    try:
        directory.mkdir(mode=0o700)
        (directory / "tokens").mkdir(mode=0o700)
    except OSError as exc:
        raise ConfigError("HSM_TOKEN", f"cannot make a token in {directory}: {exc.strerror}") from exc

    def make() -> None:
        library = _free_library(directory)
        slots = [
            s for s in library.get_slots(token_present=True) if TokenFlag.TOKEN_INITIALIZED not in s.get_token().flags
        ]
        if not slots:
            raise ConfigError("HSM_TOKEN", f"{path} offers no free slot; make the token with the module's own tool")
        # python-pkcs11 has no C_InitToken, and softhsm2-util takes PINs from the command line or a terminal only.
        function = ctypes.CDLL(path).C_InitToken
        function.argtypes = (ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        function.restype = ctypes.c_ulong
        officer = so_pin.reveal().encode()
        code = function(slots[0].slot_id, officer, len(officer), raw_label.ljust(_LABEL_BYTES))
        if code != 0:
            raise ConfigError("HSM_TOKEN", f"making token {label!r} in {directory}: C_InitToken answers {code:#x}")
        with library.get_token(token_label=label).open(rw=True, so_pin=so_pin.reveal()) as session:
            session.init_pin(pin.reveal())

    module.ask(f"making token {label!r} in {directory}", make)


def _free_library(place: Place) -> Any:
    if _state.token is not None:
        raise ConfigError(
            "HSM_BUSY", f"this process has the token {_state.token.label!r} open; close it before it uses another"
        )
    return module.library(place)


def _find_token(library: Any, place: Place, label: str) -> Any:
    if isinstance(place, Path):
        return library.get_token(token_label=label)
    wanted = {"label": place.token, "manufacturer_id": place.manufacturer, "model": place.model}
    slot_wanted = {"slot_description": place.slot_description, "manufacturer_id": place.slot_manufacturer}
    found = []
    for slot in library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
            continue
        if (
            (place.slot_id in (-1, slot.slot_id))
            and (not place.serial or token.serial.decode("utf-8", "replace").strip() == place.serial)
            and all(not value or getattr(token, name) == value for name, value in wanted.items())
            and all(not value or getattr(slot, name) == value for name, value in slot_wanted.items())
        ):
            found.append(token)
    if len(found) != 1:
        raise ConfigError("HSM_TOKEN", f"{place}: {len(found)} tokens fit, expected one; name it by its serial as well")
    return found[0]


def raw_point(point: bytes, size: int) -> bytes:
    """CKA_EC_POINT without its DER OCTET STRING header, which modules may (PKCS#11 v2.40) or may not (v3.0) put."""
    return point[2:] if len(point) == size + 2 and point[:2] == bytes((4, size)) else point


def _turn(folder: Path | None, *, alone: bool) -> AbstractContextManager[None]:
    return turn(folder, alone=alone) if folder is not None else nullcontext()


class Token:
    """An open token, logged in as its user; a context manager."""

    def __init__(self, session: pkcs11.Session, label: str, folder: Path | None) -> None:
        """For `Token.open`.  `folder`: where SoftHSM has it."""
        self._session = session
        self.label = label
        self._folder = folder
        # How often each key was used since this token was opened.
        self.uses: Counter[bytes] = Counter()

    @classmethod
    def open(cls, place: Place, label: str, pin: Secret, *, writable: bool = False) -> Token:
        """Open the token `label`: in the folder `place`, where SoftHSM has it, or wherever a URI says.

        `writable` is needed to make keys.  Raises `ConfigError`.
        """
        if isinstance(place, Path) and not (place / "tokens").is_dir():
            raise ConfigError("HSM_TOKEN", f"no token in {place}; `tallystick init` makes the tokens of a deployment")

        folder = place if isinstance(place, Path) else None

        def login() -> Token:
            token = _find_token(_free_library(place), place, label)
            _state.token = opened = cls(token.open(rw=writable, user_pin=pin.reveal()), label, folder)
            return opened

        # A login is written down in the token, too (SoftHSM: the flags about wrong PINs).
        with _turn(folder, alone=True):
            return module.ask(f"opening token {label!r} in {place}", login)

    def close(self) -> None:
        """Log out; signers of this token refuse from here on.  Closing twice is harmless."""

        def logout() -> None:
            if _state.token is not self:
                return
            _state.token = None
            # Where the token is gone, the login went with it.
            with suppress(pkcs11.DeviceRemoved, pkcs11.SessionHandleInvalid):
                self._session.close()

        module.ask(f"closing token {self.label!r}", logout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- keys come and go

    def generate_ed25519(self, key_id: bytes, label: str) -> bytes:
        """Make an Ed25519 key pair that only signs and never leaves; returns the raw public key.

        Raises `ConfigError`, also where `key_id` is taken.
        """
        self._generate(key_id, label, KeyType.EC_EDWARDS, ED25519_PARAMS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN)
        return self.signer(key_id).public

    def generate_p256(self, key_id: bytes, label: str) -> ec.EllipticCurvePublicKey:
        """Make a P-256 key pair that only signs and never leaves; returns the public key.  Raises `ConfigError`."""
        self._generate(key_id, label, KeyType.EC, CURVES["secp256r1"], Mechanism.EC_KEY_PAIR_GEN)
        return self.p256_signer(key_id).public

    def generate_secp256k1(self, key_id: bytes, label: str) -> ec.EllipticCurvePublicKey:
        """Make a secp256k1 key pair that only signs and never leaves; returns the public key.  Raises `ConfigError`."""
        self._generate(key_id, label, KeyType.EC, CURVES["secp256k1"], Mechanism.EC_KEY_PAIR_GEN)
        return self.secp256k1_signer(key_id).public

    def generate_rsa(self, key_id: bytes, label: str, bits: int = 2048) -> rsa.RSAPublicKey:
        """Make an RSA key pair that only signs and never leaves; returns the public key.  Raises `ConfigError`."""
        if bits not in RSA_BITS:
            raise ConfigError("KEY_KIND", f"RSA keys have {', '.join(map(str, RSA_BITS))} bits, not {bits}")

        def make() -> None:
            self._require_free(key_id)
            self._session.generate_keypair(
                KeyType.RSA, bits, mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN, **self._pair(key_id, label)
            )

        self.ask(f"making {self._name(key_id)}", make, alone=True)
        return self.rsa_signer(key_id).public

    def _generate(self, key_id: bytes, label: str, kind: KeyType, params: bytes, mechanism: Mechanism) -> None:
        def make() -> None:
            self._require_free(key_id)
            domain = self._session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
            domain.generate_keypair(mechanism=mechanism, **self._pair(key_id, label))

        self.ask(f"making {self._name(key_id)}", make, alone=True)

    def _pair(self, key_id: bytes, label: str) -> dict[str, Any]:
        private = PROTECTED | {Attribute.DECRYPT: False, Attribute.UNWRAP: False, Attribute.SIGN_RECOVER: False}
        return {
            "id": key_id,
            "label": label,
            "store": True,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            "private_template": private,
            "public_template": {Attribute.MODIFIABLE: False},
        }

    def import_private(self, key_id: bytes, label: str, key: PrivateKey) -> Imported:
        """Take in a private key that was made elsewhere.  Raises `ConfigError`, also where `key_id` is taken."""
        return self._import(key_id, lambda: import_private(self._session, key_id, label, key))

    def import_mac(self, key_id: bytes, label: str, value: bytes) -> Imported:
        """Take in a secret for HMAC, at least as long as the digest.  Raises `ConfigError` as `import_private`."""
        return self._import(key_id, lambda: import_secret(self._session, key_id, label, value))

    def _import(self, key_id: bytes, take: Callable[[], Imported]) -> Imported:
        def imported() -> Imported:
            self._require_free(key_id)
            return take()

        return self.ask(f"importing {self._name(key_id)}", imported, alone=True)

    def _require_free(self, key_id: bytes) -> None:
        if self.objects({Attribute.ID: key_id}):
            raise ConfigError("HSM_DUPLICATE", f"{self._name(key_id)} exists already; a key id is used once")

    def destroy(self, key_id: bytes) -> None:
        """Destroy a key with everything under its id, for good.  Raises `ConfigError` where there is none."""

        def remove() -> None:
            found = self.objects({Attribute.ID: key_id})
            if not found:
                raise ConfigError("HSM_KEY", f"{self._name(key_id)}: there is none")
            # The private part first: what a crash leaves is a public key that signs nothing.
            for key in sorted(found, key=lambda o: o.object_class not in PRIVATE_CLASSES):
                key.destroy()

        self.ask(f"destroying {self._name(key_id)}", remove, alone=True)

    def change_pin(self, old: Secret, new: Secret) -> None:
        """Have the token opened by `new` from now on; whoever has it open stays in.  Raises `ConfigError`."""
        self.ask(
            f"changing the PIN of token {self.label!r}",
            lambda: self._session.set_pin(old.reveal(), new.reveal()),
            alone=True,
        )

    # --- keys are used

    def signer(self, key_id: bytes, *, imported: bool = False) -> HsmSigner:
        """The Ed25519 key `key_id`; `imported`: also one that was made elsewhere.

        Raises `ConfigError` (no such key, or one that could have left the token) and `Unverified`
        (the public key in the token does not belong to it).
        """
        name = self._name(key_id)
        private, public_key = self._pair_of(key_id, KeyType.EC_EDWARDS, imported=imported)
        public = raw_point(public_key[Attribute.EC_POINT], 32)
        signer = HsmSigner(self._using(key_id), private, public, name)
        probe = _PROBE + entropy.token_bytes(32)
        try:
            verify(public, signer.sign(probe), probe)
        except BadSignature as exc:
            raise _foreign(name) from exc
        return signer

    def p256_signer(self, key_id: bytes, *, imported: bool = False) -> EcdsaSigner:
        """The P-256 key `key_id`.  Raises as `signer` does."""
        return self._ecdsa(key_id, ec.SECP256R1(), imported=imported)

    def secp256k1_signer(self, key_id: bytes, *, imported: bool = False) -> EcdsaSigner:
        """The secp256k1 key `key_id`.  Raises as `signer` does."""
        return self._ecdsa(key_id, ec.SECP256K1(), imported=imported)

    def _ecdsa(self, key_id: bytes, curve: ec.EllipticCurve, *, imported: bool) -> EcdsaSigner:
        name = self._name(key_id)
        private, public_key = self._pair_of(key_id, KeyType.EC, imported=imported)
        probe = _PROBE + entropy.token_bytes(32)
        try:
            point = raw_point(public_key[Attribute.EC_POINT], 65)
            on_curve = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
            signer = EcdsaSigner(self._using(key_id), private, on_curve, name)
            signer.public.verify(signer.sign(probe), probe, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError) as exc:
            raise _foreign(name) from exc
        return signer

    def rsa_signer(self, key_id: bytes, *, imported: bool = False) -> RsaSigner:
        """The RSA key `key_id`.  Raises as `signer` does."""
        name = self._name(key_id)
        private, public_key = self._pair_of(key_id, KeyType.RSA, imported=imported)
        probe = _PROBE + entropy.token_bytes(32)
        try:
            signer = RsaSigner(self._using(key_id), private, rsa_public(public_key), name)
            signer.public.verify(signer.sign(probe), probe, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError) as exc:
            raise _foreign(name) from exc
        return signer

    def mac_key(self, key_id: bytes, digest: Digest) -> MacKey:
        """The secret `key_id`, which was imported.  Raises `ConfigError`."""
        name = self._name(key_id)

        def find() -> MacKey:
            (key,) = self._one(key_id, KeyType.GENERIC_SECRET, name, (ObjectClass.SECRET_KEY,))
            return MacKey(self._using(key_id), self._checked(key, name, imported=True), digest, name)

        return self.ask(f"looking for {name}", find)

    def _using(self, key_id: bytes) -> Ask:
        def use(what: str, function: Callable[[], T]) -> T:
            used = self._ask(what, function)
            self.uses[key_id] += 1
            return used

        return use

    def _pair_of(self, key_id: bytes, kind: KeyType, *, imported: bool) -> tuple[SignMixin, dict[Attribute, bytes]]:
        """The private key, and the attributes of its public key."""
        name = self._name(key_id)
        wanted = (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT) if kind is KeyType.RSA else (Attribute.EC_POINT,)

        def find() -> tuple[SignMixin, dict[Attribute, bytes]]:
            private, public = self._one(key_id, kind, name, (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY))
            checked = self._checked(private, name, imported=imported)
            return checked, {attribute: bytes(public[attribute]) for attribute in wanted}

        return self.ask(f"looking for {name}", find)

    def _one(self, key_id: bytes, kind: KeyType, name: str, classes: Sequence[ObjectClass]) -> list[Any]:
        """Exactly one object of each class.  Raises `ConfigError`."""
        query = {Attribute.ID: key_id, Attribute.KEY_TYPE: kind}
        found = [self.objects({**query, Attribute.CLASS: wanted}) for wanted in classes]
        if any(len(objects) != 1 for objects in found):
            counted = " and ".join(
                f"{len(objects)} {wanted.name.partition('_')[0].lower()}"
                for objects, wanted in zip(found, classes, strict=True)
            )
            raise ConfigError("HSM_KEY", f"{name}: found {counted} keys, expected one of each")
        return [objects[0] for objects in found]

    def _checked(self, key: Any, name: str, *, imported: bool) -> SignMixin:
        if not isinstance(key, SignMixin):
            raise ConfigError("HSM_KEY", f"{name}: the module calls it a private key but does not let it sign")
        if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
            raise ConfigError("HSM_EXTRACTABLE", f"{name} can leave the token; make a new key")
        born_inside = flag(key, Attribute.LOCAL)
        # What was imported existed outside anyway; what was born inside has no reason to have been extractable.
        if not flag(key, Attribute.NEVER_EXTRACTABLE) and (born_inside or not imported):
            raise ConfigError(
                "HSM_EXTRACTABLE", f"{name} can have left the token, or was made outside of it; make a new key"
            )
        return key

    # --- for who looks at keys (`inventory`)

    def ask(self, what: str, function: Callable[[], T], *, alone: bool = False) -> T:
        """`function()` in the modules' thread, while this token is open; `alone`: it makes or destroys keys (`turns`).

        Raises `ConfigError`.
        """
        # Whoever asks waits for the turn, and not the modules' thread: others sign meanwhile.
        with _turn(self._folder, alone=alone):
            return self._ask(what, function)

    def _ask(self, what: str, function: Callable[[], T]) -> T:
        def asked() -> T:
            if _state.token is not self:
                raise ConfigError("HSM_CLOSED", f"token {self.label!r} is closed")
            return function()

        return module.ask(what, asked)

    def objects(self, query: dict[Attribute, object]) -> list[Any]:
        """What fits; for functions that `ask` runs."""
        # Read whole: an open search blocks the session.
        return list(self._session.get_objects(query))

    @property
    def itself(self) -> Any:
        """The token as python-pkcs11 has it; for functions that `ask` runs."""
        return self._session.token

    def _name(self, key_id: bytes) -> str:
        return f"key {key_id.decode('ascii', 'backslashreplace')!r} of token {self.label!r}"

    def __repr__(self) -> str:
        return f"Token({self.label!r})"


def rsa_public(attributes: dict[Attribute, bytes]) -> rsa.RSAPublicKey:
    """Raises `ValueError` for numbers that are no key."""
    return rsa.RSAPublicNumbers(
        int.from_bytes(attributes[Attribute.PUBLIC_EXPONENT], "big"),
        int.from_bytes(attributes[Attribute.MODULUS], "big"),
    ).public_key()


def flag(key: Any, attribute: Attribute) -> bool:
    """An attribute that is true or false; what a token does not know is not to its credit."""
    try:
        return bool(key[attribute])
    except pkcs11.AttributeTypeInvalid:
        return attribute in (Attribute.EXTRACTABLE, Attribute.MODIFIABLE)


def _foreign(name: str) -> Unverified:
    return Unverified("HSM_KEY", f"{name}: the public key in the token is not that of the private key")
