"""Every command ends within `SOON_S` of a signal, whatever is down; what it could not publish is said."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest

from tallystick.runtime.bus.heartbeats import QUIET_S
from tests.support.command import READY_S, Desk, until
from tests.support.deployment import make

pytestmark = pytest.mark.timeout(2 * READY_S)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Desk(make(tmp_path_factory.mktemp("stop") / "desk")[0]) as made:
        yield made


# A heartbeat at least goes into the void.
VOID_S = QUIET_S + 1.2
AWAY = [(name, how) for name in ("broker", "authority") for how in (signal.SIGSTOP, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("name", "how", "number"), [*((*away, signal.SIGINT) for away in AWAY), (*AWAY[0], signal.SIGTERM)]
)
def test_watch_ends_while_a_part_is_away(desk: Desk, name: str, how: signal.Signals, number: signal.Signals) -> None:
    watch = desk.start("watch", pin=True)
    watch.until_said("events/s")
    with desk.without(name, how):
        time.sleep(VOID_S if name == "broker" else 0.2)
        code = watch.ended_by(number)
    if name == "authority":
        assert code == 0, watch.said
    else:
        assert code == 1, watch.said
        assert re.search(r"UNPUBLISHED: \d+ events .*GUARD \d+", watch.said), watch.said


@pytest.mark.parametrize(("name", "how"), AWAY)
def test_who_logs_in_while_a_part_is_away_can_be_stopped(desk: Desk, name: str, how: signal.Signals) -> None:
    with desk.without(name, how):
        commands = (("watch",), ("run", "console"), ("replay", "--source", "streams"))
        for started in [desk.start(*command, pin=True) for command in commands]:
            started.until_it_waits()
            if started.process.poll() is None:
                assert started.ended_by(signal.SIGINT) in (0, 130)
            else:  # nobody answers there, which was said before we came
                assert started.process.returncode == 2, started.said
                assert re.search("AUTHORITY_UNREACHABLE|BROKER_LOGIN", started.said), started.said


def test_run_ends_while_the_broker_is_silent_and_says_what_it_could_not_publish(desk: Desk) -> None:
    run = desk.start("run", "console", pin=True)
    run.until((desk.deployment.run / "console.ready").exists, "the console is ready")
    with desk.without("broker", signal.SIGSTOP):
        time.sleep(VOID_S)
        assert run.ended_by(signal.SIGINT) == 1
    assert re.search(r"tallystick: console: UNPUBLISHED: \d+ events .*GUARD \d+", run.said), run.said
    assert '"code": "UNPUBLISHED"' in desk.deployment.log("console").read_text()


def test_a_strategy_that_runs_alone_is_given_tokens_as_long_as_it_runs(desk: Desk) -> None:
    run = desk.start("run", "strategy-alpha", pin=True)
    token = desk.deployment.run / "strategy-alpha.token"
    run.until((desk.deployment.run / "strategy-alpha.ready").exists, "the strategy is ready")
    # It took one away to log in: the next one follows.
    run.until(token.exists, "the next token")
    token.unlink()
    run.until(token.exists, "another one")
    assert run.ended_by(signal.SIGINT) == 0, run.said
    until(lambda: not token.exists(), "the token is taken away")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_a_breaker_that_does_not_answer_can_be_stopped(desk: Desk, number: signal.Signals) -> None:
    with desk.without("breaker", signal.SIGSTOP):
        for asking in [desk.start("status"), desk.start("kill", "--scope", "strategy-alpha")]:
            asking.until_it_waits()
            assert asking.ended_by(number) == 130


@pytest.mark.parametrize(
    ("part", "commands"),
    [("breaker", (("arm",), ("rearm", "strategy-beta"))), ("authority", (("revoke", "strategy-beta"),))],
)
def test_who_signs_for_a_part_that_does_not_answer_can_be_stopped(
    desk: Desk, part: str, commands: tuple[tuple[str, ...], ...]
) -> None:
    with desk.without(part, signal.SIGSTOP):
        for asking in [desk.start(*command, pin=True) for command in commands]:
            asking.until_it_waits()
            assert asking.ended_by(signal.SIGINT) == 130


def test_what_is_queued_is_published_at_a_clean_stop(desk: Desk) -> None:
    watch = desk.start("watch", pin=True)
    watch.until_said("events/s")
    assert watch.ended_by(signal.SIGINT) == 0
    assert "UNPUBLISHED" not in watch.said
