"""PKCS#11 modules of this process: found, checked, loaded and initialised, and used in one thread (`owner`).

- SoftHSM is what a token folder uses; a `TokenUri` names another module (CloudHSM, YubiHSM, Nitrokey …).
- A module is code that runs beside the keys: a file that others than root and we can write to is not loaded.
- A process has at most one token open: SoftHSM reads its configuration once per initialisation.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pkcs11

from tallystick.runtime.keys.owner import Owner
from tallystick.runtime.keys.uri import Place
from tallystick.schemas.errors import ConfigError

if TYPE_CHECKING:
    from pkcs11 import _pkcs11

T = TypeVar("T")

SOFTHSM_PATHS: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
_CONF: Final = "SOFTHSM2_CONF"
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

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
    pkcs11.MechanismInvalid: ("HSM_MECHANISM", "the module does not offer that kind of key or signature"),
    pkcs11.DeviceRemoved: ("HSM_TOKEN", "the token was removed; plug it in and start again"),
}

_owner: Final = Owner()
# Module -> its library; used in the owner's thread alone.
_libraries: Final[dict[str, _pkcs11.lib]] = {}


def ask(what: str, function: Callable[[], T]) -> T:
    """`function()` in the thread of the modules; their errors as `ConfigError` about `what`."""
    try:
        return _owner.ask(what, function)
    except pkcs11.PKCS11Error as exc:
        code, advice = _ADVICE.get(type(exc), ("HSM_FAILED", "the module refused"))
        raise ConfigError(code, f"{what}: {advice} ({type(exc).__name__})") from exc


def softhsm() -> str:
    """Where SoftHSM's module lies.  Raises `ConfigError` where it does not."""
    for path in SOFTHSM_PATHS:
        if Path(path).is_file():
            # One name for a module: loaded by two, it would be initialised twice.
            return str(Path(path).resolve())
    raise ConfigError(
        "HSM_MODULE",
        "no PKCS#11 module: SoftHSM (libsofthsm2.so) is not installed; `apt-get install softhsm2` installs it, "
        "or name the token of another module by its URI in [tokens] of deployment.toml",
    )


def module_path(place: Place) -> str:
    """The module of a token.  Raises `ConfigError` where there is none, or one that others can write to."""
    if isinstance(place, Path):
        return softhsm()
    try:
        # What is looked at is what is loaded: no link is followed afterwards.
        path = place.module_path.resolve(strict=True)
        found = path.stat()
    except (OSError, RuntimeError) as exc:
        why = getattr(exc, "strerror", None) or "a link that leads to itself"
        raise ConfigError("HSM_MODULE", f"{place.module_path}: {why}; correct module-path in the token's URI") from exc
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError("HSM_MODULE", f"{path} is no file; correct module-path in the token's URI")
    for part in (path, *path.parents):
        looked = part.stat()
        # A sticky folder lets nobody replace what is another's.
        sticky = stat.S_ISDIR(looked.st_mode) and looked.st_mode & stat.S_ISVTX
        open_to_others = looked.st_mode & _OTHERS and not sticky
        if looked.st_uid not in (0, os.geteuid()) or open_to_others:
            raise ConfigError(
                "HSM_MODULE",
                f"{part} can be changed by others (uid {looked.st_uid}, mode {looked.st_mode & 0o7777:04o}), and its code "
                "would run beside the keys; it must be root's, and writable by nobody else",
            )
    return str(path)


def library(place: Place) -> _pkcs11.lib:
    """The module's library, freshly initialised on the tokens of `place`; for functions that `ask` runs."""
    path = module_path(place)
    if not isinstance(place, Path):
        return _load(path)
    # SoftHSM's configuration wants absolute paths; in memory it cannot go stale when the folder moves.
    conf = os.memfd_create("softhsm2.conf", os.MFD_CLOEXEC)
    before = os.environ.get(_CONF)
    try:
        tokens = place.resolve() / "tokens"
        os.write(conf, f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n".encode())
        os.environ[_CONF] = f"/proc/self/fd/{conf}"
        return _load(path)
    finally:
        os.environ.pop(_CONF, None)
        if before is not None:
            os.environ[_CONF] = before
        os.close(conf)


def _load(path: str) -> _pkcs11.lib:
    known = _libraries.get(path)
    if known is not None:
        known.reinitialize()
        return known
    try:
        loaded: _pkcs11.lib = pkcs11.lib(path)
    except pkcs11.PKCS11Error as exc:
        raise ConfigError("HSM_MODULE", f"{path} is no PKCS#11 module that can be loaded: {exc}") from exc
    _libraries[path] = loaded
    return loaded
