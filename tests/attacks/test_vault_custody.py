"""Custody without a lease of the vault: no order is signed, whoever asks with whatever permit; cancels and queries are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.runtime.deployment.service import ServiceContext
from tallystick.schemas import signing
from tallystick.schemas.errors import ConfigError
from tests.attacks.test_poison import context
from tests.support.custody import Desk

NAME = "ts" + "0" * 32


def refusal(reply: signing.Reply) -> str:
    assert isinstance(reply, signing.Refused), reply
    return reply.code


def test_a_genuine_permit_is_not_signed_without_a_lease_and_not_used_up_either(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    request = desk.request()
    desk.lease.lost("test")
    assert [refusal(desk.ask(request)) for _ in range(3)] == ["VAULT_LEASE_ENDED"] * 3
    assert desk.permits.used == 0
    desk.lease.granted(desk.now, desk.monotonic, 300)
    assert isinstance(desk.ask(request), signing.Signed)
    assert refusal(desk.ask(request)) == "PERMIT_USED"


@pytest.mark.parametrize(
    "request_",
    [
        signing.SignCancel(id=1, venue="paper", symbol="XRP/ETH", client_order_id=NAME),
        signing.SignCancelAll(id=1, venue="paper", symbol="XRP/ETH"),
        signing.SignQuery(id=1, venue="paper", symbol="XRP/ETH", client_order_id=NAME),
        signing.SignOpenOrders(id=1, venue="paper", symbol="XRP/ETH"),
    ],
)
def test_nothing_keeps_the_kill_switch_from_its_way(tmp_path: Path, request_: signing.Request) -> None:
    desk = Desk(tmp_path)
    desk.lease.lost("test")
    assert isinstance(desk.ask(request_), signing.Signed)


def test_a_lease_that_ended_between_two_orders_lets_the_second_one_not_pass(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.lease.granted(desk.now, desk.monotonic, 1)
    assert isinstance(desk.sign(), signing.Signed)
    desk.advance(1)
    desk.renew()
    assert refusal(desk.sign()) == "VAULT_LEASE_ENDED"


def test_a_process_that_was_given_its_secrets_some_other_way_has_no_lease_to_sign_under() -> None:
    made: ServiceContext = context()
    with pytest.raises(ConfigError, match="VAULT_LEASE"):
        _ = made.leased
