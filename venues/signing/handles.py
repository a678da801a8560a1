"""What ccxt holds where it expects a secret: an opaque handle, which is none.

- A handle records what ccxt does to it (`transforms`), as far as its scheme names it.  The signing hooks then ask the token
  for the key that was stored for this form.
- It answers what ccxt sniffs: whether it is there, its length, a few known letters.  The answers are the scheme's.
- Everything else raises `Denied("SECRET_USED")`: joining, formatting, cutting, comparing, iterating, hashing, pickling.
- What reads its memory past Python's methods (`"".join`, C encoders) finds a mark, and a request with the mark in it is
  refused (`require_no_handle`).

ccxt is not trusted with the secret: an attacker who controls it finds none, and can at most have something signed that
nobody checked; what is signed in custody is checked first (`tallystick.venues.capture`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final, Never, TypeVar

from tallystick.venues import Denied
from tallystick.venues.signing.schemes import MARK, Form, Scheme

# What ccxt looks for to know the kind of a key.
_SNIFFED: Final = ("PRIVATE KEY", "BEGIN", "-----BEGIN", "ed25519:", "=")
# Methods that say nothing of the content, or belong to the object and not to the text.
_HARMLESS: Final = frozenset(
    (
        *("__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__doc__", "__dir__", "__len__"),
        *("__getattribute__", "__setattr__", "__delattr__"),
    )
)
T = TypeVar("T", bound=type)


def _refuse(*_: object, **__: object) -> Never:
    raise Denied("SECRET_USED", "the exchange library tried to read or to send the secret")


def _refusing_all_else(cls: T) -> T:
    for name in {*dir(cls.__mro__[2]), "__radd__", "__rmod__", "__rmul__", "__bytes__", "__copy__", "__deepcopy__"}:
        if name not in _HARMLESS and name not in vars(cls) and name not in vars(_Handle):
            setattr(cls, name, _refuse)
    return cls


class _Handle:  # noqa: PLW1641 - it refuses to be hashed
    """What both kinds of handle do."""

    scheme: Scheme
    transforms: Form

    def derive(self, step: str, kind: type[Any] | None = None) -> Any:
        """The handle after one more `step`.  Raises `Denied` where the scheme names no such form."""
        form = (*self.transforms, step)
        if not self.scheme.allows(form):
            _refuse()
        return _made(kind or type(self), MARK, self.scheme, form)

    def __repr__(self) -> str:
        return "<secret in the HSM>"

    def __eq__(self, other: object) -> bool:
        # ccxt asks so whether there is a secret.
        if isinstance(other, str) and not isinstance(other, _Handle) and len(other) == 0:
            return False
        return self is other or _refuse()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, part: object) -> Any:
        if not isinstance(part, slice) or part.step is not None:
            _refuse()
        return self.derive(f"[{'' if part.start is None else part.start}:{'' if part.stop is None else part.stop}]")

    __hash__ = __reduce__ = __reduce_ex__ = _refuse


def _sniffed(answer: Callable[[str, str], Any]) -> Callable[..., Any]:
    def asked(self: SecretText, marker: str) -> Any:
        return answer(self.scheme.shape, marker) if marker in _SNIFFED and not self.transforms else _refuse()

    return asked


@_refusing_all_else
class SecretText(_Handle, str):  # noqa: SLOT000 - what it is a handle of stands in its dict
    """Stands where ccxt keeps a secret as text."""

    find = _sniffed(str.find)
    startswith = _sniffed(str.startswith)
    endswith = _sniffed(str.endswith)

    def encode(self, *_: object, **__: object) -> Any:
        """Its UTF-8."""
        return self.derive("utf8", SecretBytes)

    def upper(self) -> Any:
        """In capitals."""
        return self.derive("upper")

    def split(self, separator: object = None, *_: object) -> Any:
        """What stands behind the mark of an Ed25519 key, as ccxt cuts it."""
        if separator != "ed25519:":
            _refuse()
        return ["", self.derive("after-ed25519:")]

    def __radd__(self, other: object) -> Any:
        # Put back what was taken off: still the same handle.
        if self.transforms[-1:] != ("without-0x",) or other != "0x":
            _refuse()
        return _made(SecretText, MARK, self.scheme, self.transforms[:-1])


@_refusing_all_else
class SecretBytes(_Handle, bytes):
    """Stands where ccxt has made bytes of a secret."""


def _made(kind: type[Any], content: str, scheme: Scheme, transforms: Form) -> Any:
    made = kind(content if issubclass(kind, str) else content.encode("ascii"))
    made.scheme = scheme
    made.transforms = transforms
    return made


def secret_handle(scheme: Scheme) -> SecretText:
    """The handle to put where ccxt keeps the secret of `scheme`."""
    handle: SecretText = _made(SecretText, scheme.shape, scheme, ())
    return handle


def is_handle(value: object) -> bool:
    """Whether this is a handle, whatever it says of itself."""
    return isinstance(value, (SecretText, SecretBytes))


def _disguises() -> tuple[str, ...]:
    """The mark as it may stand in a request: plain, in hex, and in base64 wherever it begins."""
    raw = MARK.encode("ascii")
    cut = [base64.b64encode(b"\x00" * shift + raw).decode("ascii")[(shift * 8 + 5) // 6 :] for shift in range(3)]
    # The last letters also hold bits of what follows.
    return (MARK.lower(), raw.hex(), *(text.rstrip("=")[:-2].lower() for text in cut))


_DISGUISES: Final = _disguises()


def require_no_handle(*parts: object) -> None:
    """Raise `Denied` where a handle stands anywhere in what would be sent."""
    for part in parts:
        if part is None:
            continue
        if is_handle(part):
            _refuse()
        if isinstance(part, dict):
            require_no_handle(*part.keys(), *part.values())
        elif isinstance(part, (list, tuple)):
            require_no_handle(*part)
        elif isinstance(part, (str, bytes, bytearray)):
            text = (part if isinstance(part, str) else bytes(part).decode("latin-1")).lower()
            if any(mark in text for mark in _DISGUISES):
                _refuse()
