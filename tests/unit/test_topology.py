"""The topology: what is refused, with what and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tallystick.infra.nats.cli import app
from tallystick.infra.nats.picture import check_docs, render_docs
from tallystick.infra.nats.topology import DEFAULT_PATH, load, parse, stream_subjects
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.subjects import KINDS, STREAMS, matches, overlaps

TEXT = DEFAULT_PATH.read_text("utf-8")
BUS = load().expand(("momentum", "mean-reversion"))
DOCS = Path(__file__).parents[2] / "docs" / "topology.md"


def test_the_committed_picture_is_generated_from_the_topology() -> None:
    check_docs(load(), DOCS)


def test_an_edited_picture_is_refused(tmp_path: Path) -> None:
    docs = tmp_path / "topology.md"
    docs.write_text(render_docs(load()).replace("order.decision", "order.derision", 1))
    with pytest.raises(ConfigError, match=r"TOPOLOGY_DOCS.*is not what is generated"):
        check_docs(load(), docs)
    with pytest.raises(ConfigError, match=r"TOPOLOGY_DOCS.*cannot be read"):
        check_docs(load(), tmp_path / "missing.md")


def test_the_command_checks_and_renders(tmp_path: Path) -> None:
    docs = str(tmp_path / "topology.md")
    runner = CliRunner()
    assert isinstance(runner.invoke(app, ["check", "--docs", docs]).exception, ConfigError)
    assert runner.invoke(app, ["render", "--docs", docs]).exit_code == 0
    assert runner.invoke(app, ["check", "--docs", docs]).exit_code == 0


def test_a_strategy_reaches_nothing_of_another() -> None:
    mine = BUS.components["strategy-momentum"]
    theirs = BUS.components["strategy-mean-reversion"]
    reads = [read for filters in mine.reads.values() for read in filters]
    for pattern in theirs.publishes:
        assert not any(overlaps(pattern, other) for other in mine.publishes)
        assert not any(overlaps(pattern, read) for read in reads)
    for subject in ("position", "fill", "order.decision", "order.event"):
        assert not any(matches(read, f"{subject}.mean-reversion.paper.XRP-ETH") for read in reads)


def test_custody_hears_control_and_credentials_alone() -> None:
    control = ("control.breaker.>", "control.arm.>", "control.config.>", "control.key.keymaster")
    assert BUS.components["custody"].reads == {"SECURITY": (*control, "cred.>")}


def test_audit_hears_everything() -> None:
    reads = BUS.components["audit"].reads
    for kind in KINDS.values():
        assert any(overlaps(kind.pattern, read) for read in reads[kind.stream]), kind.name


def test_each_subject_lies_in_exactly_one_stream() -> None:
    for kind in KINDS.values():
        assert [s for s in STREAMS if any(overlaps(kind.pattern, p) for p in stream_subjects(s))] == [kind.stream]


def test_credentials_live_as_long_as_required() -> None:
    lifetimes = {name: component.lifetime_s for name, component in BUS.components.items()}
    assert (lifetimes["strategy-momentum"], lifetimes["execution"]) == (300, 120)
    assert (lifetimes["market-data"], lifetimes["audit"]) == (900, 600)


def _sub(old: str, new: str) -> Callable[[], str]:
    def change() -> str:
        assert old in TEXT
        return TEXT.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (_sub("[streams.MARKET]", "[streams.MARKET"), "TOPOLOGY_SYNTAX", "line"),
        (_sub("version = 1", "version = 2"), "TOPOLOGY", r"\$.version"),
        (_sub('zone = "vault"', 'zone = "vault"\nroot = true'), "TOPOLOGY", "root"),
        (_sub('zone = "vault"', 'zone = "cloud"'), "TOPOLOGY", r"\$.components"),
        (_sub("lifetime_s = 120", 'lifetime_s = "120"'), "TOPOLOGY", "int"),
        (_sub("lifetime_s = 120", "lifetime_s = 86400"), "TOPOLOGY_LIFETIME", "components.execution"),
        (_sub('folder = "custody"', 'folder = "../custody"'), "TOPOLOGY_NAME", "components.custody.folder"),
        (_sub("[components.custody]", '[components."cust*dy"]'), "TOPOLOGY_NAME", r"cust\*dy"),
        (_sub("[components.custody]", '[components."custody.>"]'), "TOPOLOGY_NAME", "custody"),
        (_sub("[components.custody]", "[components.execution]"), "TOPOLOGY_SYNTAX", ""),
        (_sub("[streams.GUARD]", "[streams.GUARDS]"), "TOPOLOGY_STREAM", "GUARDS"),
        (
            _sub("max_per_subject = 100_000", "duplicate_window_s = 90"),
            "TOPOLOGY_STREAM",
            "GUARD.duplicate_window_s is 90",
        ),
        (_sub("max_per_subject = 100_000", "max_per_subject = -1"), "TOPOLOGY_STREAM", "GUARD.max_per_subject"),
        (_sub('"order.decision.*.*.*"', '"order.derision.*.*.*"'), "TOPOLOGY_SUBJECT", "components.gateway.publishes"),
        (_sub('"order.decision.*.*.*"', '"order.decision.>"'), "TOPOLOGY_SUBJECT", "components.gateway.publishes"),
        (_sub('"order.decision.*.*.*"', '"order.*.*.*.*"'), "TOPOLOGY_SUBJECT", "components.gateway.publishes"),
        (_sub('"order.decision.*.*.*"', '"order.decision.*.*"'), "TOPOLOGY_SUBJECT", "components.gateway.publishes"),
        (_sub('"control.config.custody"', '"control.config.Custody"'), "TOPOLOGY_NAME", "components.custody"),
        (_sub('"control.config.custody"', '"control.config.{strategy}"'), "TOPOLOGY_NAME", "components.custody"),
        (_sub('reads = ["md.trade.>"', 'reads = ["ticks.>"'), "TOPOLOGY_SUBJECT", "components.paper-exchange.reads"),
        (_sub('reads = ["md.trade.>"', 'reads = [">"'), "TOPOLOGY_SUBJECT", "components.paper-exchange.reads"),
        (_sub('reads = ["md.trade.>"', 'reads = ["*.trade.>"'), "TOPOLOGY_SUBJECT", "components.paper-exchange.reads"),
        (_sub('reads = ["md.trade.>"', 'reads = ["$JS.>"'), "TOPOLOGY_SUBJECT", "components.paper-exchange.reads"),
        (_sub('reads = ["md.trade.>"', 'reads = ["cred.>"'), "TOPOLOGY_DUPLICATE", "components.paper-exchange"),
        (
            _sub('reads = ["md.trade.>"', 'reads = ["md.>", "md.trade.*.*"'),
            "TOPOLOGY_DUPLICATE",
            "components.paper-exchange",
        ),
        (
            _sub('["audit.checkpoint"]', '["audit.checkpoint", "order.decision.*.*.*"]'),
            "TOPOLOGY_OWNER",
            "audit and gateway",
        ),
        (_sub("signal.{strategy}.*.*", "signal.*.*.*"), "TOPOLOGY_OWNER", "strategy-b and strategy-a"),
        (
            _sub('"what strategies think"\ndurability = "fsync"', '"what strategies think"\ndurability = "async"'),
            "TOPOLOGY_WRITERS",
            "strategy-a and strategy-b write to SIGNALS",
        ),
        (
            _sub('reads = ["md.trade.>"]', 'reads = ["md.trade.>", "order.event.>", "dead.>"]'),
            "TOPOLOGY_CYCLE",
            "paper-exchange",
        ),
        (
            _sub('"order.decision", "order.event", "fill", "position", "alert"', '"order.decision"'),
            "TOPOLOGY_CYCLE",
            "gateway",
        ),
        (
            _sub('kinds = ["cred", "control.breaker"]', 'kinds = ["cred", "control.breaker", "md.trade"]'),
            "TOPOLOGY_FEEDBACK",
            "does not exist",
        ),
        (
            _sub('kinds = ["cred", "control.breaker"]', 'kinds = ["cred", "control.breaker", "cred"]'),
            "TOPOLOGY_FEEDBACK",
            "twice",
        ),
        (_sub('reader = "custody"', 'reader = "nobody"'), "TOPOLOGY_FEEDBACK", "nobody"),
    ],
)
def test_a_wrong_topology_is_refused_with_its_place(change: Callable[[], str], code: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^{code}: topology.toml: .*{says}"):
        parse(change(), "topology.toml")


def test_a_loop_is_shown_step_by_step() -> None:
    text = TEXT.replace('kinds = ["order.event", "control.config"]', 'kinds = ["control.config"]')
    with pytest.raises(ConfigError, match=r"execution → order\.event → execution: declare it"):
        parse(text, "topology.toml")


@pytest.mark.parametrize("name", ["*", ">", "a.b", "A", "", "a*", "{strategy}", "-a", "a" * 49, "a" * 45])
def test_a_strategy_name_that_could_become_a_wildcard_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="TOPOLOGY_NAME"):
        load().expand([name])


def test_a_strategy_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        load().expand(["momentum", "momentum"])


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TOPOLOGY_FILE"):
        load(tmp_path / "topology.toml")
    (tmp_path / "latin.toml").write_bytes(b"version = '\xff'")
    with pytest.raises(ConfigError, match="TOPOLOGY_FILE"):
        load(tmp_path / "latin.toml")


_token = st.sampled_from(["a", "b", "*"])
_pattern = st.builds(
    lambda ts, tail: ".".join([*ts, *tail]), st.lists(_token, min_size=1, max_size=3), st.sampled_from([[], [">"]])
)


@given(_pattern, _pattern, st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(".".join))
@settings(max_examples=100)
def test_patterns_that_share_a_subject_overlap(one: str, other: str, subject: str) -> None:
    assert overlaps(one, other) == overlaps(other, one)
    if matches(one, subject) and matches(other, subject):
        assert overlaps(one, other)


@given(st.integers(0, len(TEXT) - 1), st.sampled_from(["", "*", ">", '"', "[", "\n", "\0", "1"]))
@settings(max_examples=60)
def test_a_damaged_file_parses_or_is_refused_in_our_words(position: int, char: str) -> None:
    try:
        parse(TEXT[:position] + char + TEXT[position + 1 :], "topology.toml")
    except ConfigError as exc:
        assert "topology.toml" in exc.text  # noqa: PT017 - most damage parses or hits a comment
