"""What can go wrong on the wire, as exceptions that callers cannot mistake for success.

Every refusal of bad input or of an unverifiable message derives from `TallystickError`, so no raw
`ValueError` crosses a trust boundary.  "Could not verify" (`CouldNotVerify`) is a subclass of
"unverified" (`Unverified`): whoever catches `Unverified` fails closed in both cases.

Each error carries a stable `code` (upper case, for machines and SQL) and a `text` (cause plus
numbers, for people).
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

# What msgspec raises for bytes that are not what they should be: text that is not UTF-8, and nesting without end, come
# as Python's own errors.
NOT_DECODED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class TallystickError(Exception):
    """Base of all errors raised on purpose.  `code` is stable, `text` says what, where and what to do.

    `exit_code` is that of a command which ends so: 1 for something that was found wrong, 2 for what could not run.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Malformed(TallystickError):
    """Input that does not parse, is not canonical, or exceeds a limit."""


class Unverified(TallystickError):
    """A message, token or document that failed verification: it has no effect."""


class NotListed(Unverified):
    """A session that the authority never announced, or that its current list does not hold (any more, or yet)."""


class Revoked(Unverified):
    """A session that was revoked, or whose boot was or has ended."""


class Stale(Unverified):
    """A message stated longer ago than its kind may be, by the receiver's clock."""


class Ahead(Unverified):
    """A message stated further ahead of the receiver's clock than clocks differ."""


class BootOver(Unverified):
    """A boot that is over asks for a session: it gets none any more."""


class Unreachable(Unverified):
    """A part of the system that does not answer, or lets nobody in: whoever needs it starts later."""


class LoginRefused(Unreachable):
    """The broker is there and refuses the login."""


class LeaseOver(Unverified):
    """An operator's lease, genuine and for this component, that does not hold now."""


class CouldNotVerify(Unverified):
    """Verification could not be carried out (missing or stale facts): treated as unverified."""


class ConfigError(TallystickError):
    """A deployment, topology, policy or machine that cannot be used as it is; exit code 2."""
