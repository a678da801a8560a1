"""A secret that is not there: what ccxt is given where it wants one.

A handle holds the name of a key in a token, and what was done to it so far.  It is text or bytes for ccxt's sake, with a
placeholder for content, since ccxt looks at a secret's length and marks to choose how to sign.

- What changes a secret before it is used (encoding, base64, a slice, upper case, a hash) is recorded: the token holds a key
  for each such chain, made when the secret was imported.
- What would need the secret itself (joining, formatting, comparing characters, iterating) raises `Denied`.
- What gets through all the same holds the placeholder, which `require_absent` finds: it is no secret, and nothing is sent.

The exchange library is not trusted with the secret: it runs in the process that has none.
"""

from __future__ import annotations

from typing import Any, Final, Never, Protocol, Self

from tallystick.venues import Denied

# Letters and digits alone: no encoding of a request changes them, and no exchange has such a word.
MARK: Final = "tallystickOPAQUEhandle"
Chains = tuple[tuple[str, ...], ...] | None


class SigningKeys(Protocol):
    """Keys that never leave where they are.  Each raises `Denied` or `ConfigError` for a key that it has not.

    - `mac`: the HMAC of `data` under the secret after `transforms`, with `algorithm` (`sha256`, `sha384`, `sha512`).
    - `ed25519`, `rsa` (PKCS #1 v1.5, `algorithm` as above): signatures of `data`.
    - `ecdsa`: `(r, s)` over a digest of 32 bytes, `of` this text where it is known; `point`: the public key's 64 bytes, x and y.
    """

    def mac(self, transforms: tuple[str, ...], algorithm: str, data: bytes) -> bytes: ...  # noqa: D102

    def ed25519(self, data: bytes) -> bytes: ...  # noqa: D102

    def rsa(self, data: bytes, algorithm: str) -> bytes: ...  # noqa: D102

    def ecdsa(self, digest: bytes, of: bytes = b"") -> tuple[int, int]: ...  # noqa: D102

    @property
    def point(self) -> bytes: ...  # noqa: D102


def _refuse(*_: object, **__: object) -> Never:
    raise Denied("SECRET_USED", "the exchange library tried to read or to send the secret")


class _Handle:
    """What both kinds have in common."""

    keys: SigningKeys
    transforms: tuple[str, ...]
    chains: Chains

    def after(self, step: str) -> Self:
        """The same secret after one more step."""
        made: Self = self._next(type(self), step)
        return made

    def as_bytes(self, step: str) -> OpaqueBytes:
        """The secret as bytes, after one more step."""
        made: OpaqueBytes = self._next(OpaqueBytes, step)
        return made

    def as_text(self, step: str) -> OpaqueText:
        """The secret as text, after one more step."""
        made: OpaqueText = self._next(OpaqueText, step)
        return made

    def _next(self, kind: Any, step: str) -> Any:
        form = (*self.transforms, step)
        if self.chains is not None and not any(chain[: len(form)] == form for chain in self.chains):
            _refuse()
        return _make(kind, self.keys, form, self._placeholder(), self.chains)

    def _placeholder(self) -> str:
        raise NotImplementedError

    def _sliced(self, index: Any) -> Self:
        if not isinstance(index, slice) or index.step is not None:
            _refuse()
        return self.after(f"[{'' if index.start is None else index.start}:{'' if index.stop is None else index.stop}]")

    def __repr__(self) -> str:
        return f"<key in the HSM {'+'.join(self.transforms)}>"

    __format__ = __add__ = __radd__ = __mod__ = __rmod__ = __mul__ = __rmul__ = __iter__ = __reduce__ = _refuse
    join = split = strip = lstrip = rstrip = lower = title = swapcase = zfill = ljust = rjust = center = _refuse
    partition = rpartition = splitlines = translate = expandtabs = casefold = capitalize = _refuse


class OpaqueText(_Handle, str):
    """A handle that passes for text."""

    __slots__ = ("chains", "keys", "transforms")

    def _placeholder(self) -> str:
        return str.__str__(self)

    __str__ = _refuse

    def __radd__(self, other: object) -> OpaqueText:  # type: ignore[override]
        """`0x` before a wallet's key is no part of it."""
        return self if other == "0x" else _refuse()

    def __getitem__(self, index: Any) -> OpaqueText:
        return self._sliced(index)

    def encode(self, *_: object) -> OpaqueBytes:
        """Recorded."""
        return self.as_bytes("utf8")

    def upper(self) -> OpaqueText:
        """Recorded."""
        return self.after("upper")

    def replace(self, old: str, new: str, *_: object) -> OpaqueText:
        """Recorded, where something is taken out."""
        return self.after(f"-{old}") if not new else _refuse()

    def split(self, separator: object = None, *_: object) -> list[Any]:  # type: ignore[override]
        """Orderly's secrets have a mark before them, which is no part of the key."""
        return ["", self.after("-ed25519:")] if separator == "ed25519:" else _refuse()

    format = format_map = _refuse


class OpaqueBytes(_Handle, bytes):
    """A handle that passes for bytes."""

    keys: SigningKeys
    transforms: tuple[str, ...]
    chains: Chains

    def _placeholder(self) -> str:
        return bytes.decode(self, "ascii")

    def __getitem__(self, index: Any) -> OpaqueBytes:  # type: ignore[override]
        return self._sliced(index)

    def decode(self, *_: object) -> OpaqueText:
        """Recorded."""
        return self.as_text("text")

    hex = replace = upper = _refuse


def _make(kind: Any, keys: SigningKeys, transforms: tuple[str, ...], placeholder: str, chains: Chains) -> Any:
    made = kind(placeholder) if kind is OpaqueText else kind(placeholder.encode("ascii"))
    made.keys = keys
    made.transforms = transforms
    made.chains = chains
    return made


def handle(keys: SigningKeys, placeholder: str, chains: Chains = None) -> OpaqueText:
    """A handle on `keys` that looks like `placeholder`, which holds `MARK`.

    `chains`: what may be done to the secret, step by step; None: whatever can be recorded.
    """
    made: OpaqueText = _make(OpaqueText, keys, (), placeholder, chains)
    return made


def is_handle(value: object) -> bool:
    """Whether this stands for a secret."""
    return isinstance(value, _Handle)


def require_absent(*parts: object) -> None:
    """Raise `Denied` where a part of a request holds the placeholder."""
    for part in parts:
        if isinstance(part, bytes):
            found = MARK.encode("ascii") in part
        elif isinstance(part, dict | list | tuple):
            require_absent(*([*part.keys(), *part.values()] if isinstance(part, dict) else part))
            found = False
        else:
            found = isinstance(part, _Handle) or MARK in str(part)
        if found:
            raise Denied("SECRET_SENT", "the secret itself would be a part of the request")
