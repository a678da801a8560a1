"""The one thread in which a PKCS#11 module is used."""

from __future__ import annotations

import threading

import pytest

from tallystick.runtime.keys.owner import Owner, _Call
from tallystick.schemas.errors import ConfigError
from tests.support.waiting import until


def test_everything_runs_in_one_thread_one_call_at_a_time() -> None:
    owner = Owner()
    inside, most, seen = 0, 0, set()

    def call() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        seen.add(threading.get_ident())
        inside -= 1

    def work() -> None:
        for _ in range(200):
            owner.ask("counting", call)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_a_call_from_within_a_call_does_not_wait_for_itself() -> None:
    owner = Owner()
    assert owner.ask("outer", lambda: owner.ask("inner", lambda: 7)) == 7


def test_what_it_raises_is_raised_where_it_was_asked_for() -> None:
    owner = Owner()

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        owner.ask("failing", fail)
    assert owner.ask("going on", lambda: 1) == 1


async def test_a_module_that_hangs_keeps_nobody_waiting_and_is_used_again_when_it_answers() -> None:
    owner = Owner(answer_s=0.05)
    answer = threading.Event()
    with pytest.raises(ConfigError, match="HSM_HANGS: signing: no answer"):
        owner.ask("signing", answer.wait)
    with pytest.raises(ConfigError, match=r"HSM_HANGS: listing: .*earlier call"):
        owner.ask("listing", lambda: 1)
    answer.set()

    def answers() -> bool:
        try:
            return owner.ask("listing", lambda: True)
        except ConfigError:
            return False

    await until(answers)


def test_an_answer_that_comes_as_it_is_given_up_on_leaves_the_token_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(answer_s=0.01)
    answered = threading.Event()
    wait = _Call.wait

    def too_late(call: _Call[object], seconds: float) -> bool:
        """The thread has answered, and is at its next call, before who asked says that it has not."""
        answered.wait(30)
        while call.waits:
            pass
        return False

    monkeypatch.setattr(_Call, "wait", too_late)
    with pytest.raises(ConfigError, match="HSM_HANGS"):
        owner.ask("signing", answered.set)
    monkeypatch.setattr(_Call, "wait", wait)
    assert Owner.ask(owner, "signing", lambda: "signature") == "signature"
