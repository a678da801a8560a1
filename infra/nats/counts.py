"""How much each account has sent to the broker: `$SYS.REQ.ACCOUNT.PING.STATZ`, the broker's own count.

It counts whatever comes over an account's connections, closed ones included: events, questions, rubbish.  The broker
is not trusted here: one that miscounts spares a flood, or cuts off who did not flood, which it can do anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from tallystick.schemas.errors import NOT_DECODED, CouldNotVerify

COUNTS: Final = "$SYS.REQ.ACCOUNT.PING.STATZ"


class _Sum(msgspec.Struct, frozen=True):
    msgs: int
    bytes: int


class _Account(msgspec.Struct, frozen=True):
    acc: str
    received: _Sum


class _Data(msgspec.Struct, frozen=True):
    account_statz: tuple[_Account, ...] = ()


class _Answer(msgspec.Struct, frozen=True):
    data: _Data


def counts_request(accounts: Iterable[str]) -> bytes:
    """The question about these accounts (`A…`), those that never logged in included."""
    return msgspec.json.encode({"accounts": list(accounts), "include_unused": True})


def counts(answer: bytes) -> dict[str, tuple[int, int]]:
    """Messages and bytes that each account has sent since the broker started.  Raises `CouldNotVerify`."""
    try:
        said = msgspec.json.decode(answer, type=_Answer)
    except NOT_DECODED as exc:
        raise CouldNotVerify("STATZ", f"the broker's counts cannot be read: {exc}") from exc
    return {account.acc: (account.received.msgs, account.received.bytes) for account in said.data.account_statz}
