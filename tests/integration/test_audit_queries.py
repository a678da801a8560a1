"""SQL and traces over an archive: typed columns, exact numbers, the three prepared questions, whole causal chains."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tallystick.cli.audit import app
from tallystick.record.opened import Opened
from tallystick.record.query import Answer
from tallystick.record.sandbox import connect
from tallystick.record.trace import TraceError, trace
from tallystick.record.views import QUERIES, VIEWS
from tallystick.schemas.ids import id_text
from tests.support.archive import Story, Vault


class Hall:
    def __init__(self, vault: Vault, story: Story) -> None:
        self.vault = vault
        self.story = story


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Hall:
    story = Story()
    vault = Vault(tmp_path_factory.mktemp("queries"))
    old = next(m for m in story.streams.stored if m.subject.startswith("order.intent"))
    story.streams.store("order.intent.beta.paper.XRP-ETH", old.payload)
    story.streams.end(story.execution, revoke=True)
    vault.project(story.streams.stored)
    return Hall(vault, story)


def ask(hall: Hall, sql: str) -> list[dict[str, object]]:
    answer = Answer(hall.vault.path, sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments), input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_every_view_answers_on_a_full_and_on_an_empty_archive(hall: Hall) -> None:
    for opened in (Opened(hall.vault.path, hall.vault.manifest.live.values()), None):
        connection = connect(opened)
        for name in ("log", *VIEWS):
            connection.execute(f"SELECT * FROM {name}").fetchall()
        for _, sql in QUERIES.values():
            connection.execute(sql).fetchall()
        connection.close()


def test_numbers_are_decimals_and_times_keep_their_nanoseconds(hall: Hall) -> None:
    types = {str(row["column_name"]): row["column_type"] for row in ask(hall, "DESCRIBE trades")}
    assert types["price"] == "DECIMAL(38,18)"
    assert types["ts"] == "TIMESTAMP_NS"
    [row] = ask(hall, "SELECT price, qty, epoch_ns(ts) AS ns FROM trades ORDER BY ts LIMIT 1")
    assert row["price"] == "0.001413420000000000"
    assert isinstance(row["ns"], int)


def test_the_orders_view_has_permit_state_and_fills(hall: Hall) -> None:
    [done, denied] = ask(hall, "SELECT * FROM orders ORDER BY ts")
    assert done["order_id"] == id_text(hall.story.intent.id)
    assert (done["verdict"], done["state"], done["client_order_id"]) == ("permit", "closed", "ts-1")
    assert done["decision_id"] == id_text(hall.story.decision.id)
    assert done["fills"] == ["10 @ 0.00141"]
    assert (denied["verdict"], denied["denial_codes"]) == ("deny", ["NOTIONAL_EXCEEDS_LIMIT"])


def test_the_denials_say_what_was_refused_and_why(hall: Hall) -> None:
    rows = ask(hall, QUERIES["denials"][1])
    assert {(r["what"], r["code"]) for r in rows} == {
        ("order denied", "NOTIONAL_EXCEEDS_LIMIT"),
        ("message refused", "MERKLE_ROOT"),
    }


def test_the_publishers_are_who_sealed_what(hall: Hall) -> None:
    rows = {(r["component"], r["kind"]): r for r in ask(hall, QUERIES["publishers"][1])}
    assert rows["market-data", "md.trade"]["messages"] == 7
    assert rows["gateway", "order.decision"]["events"] == 2


def test_credentials_show_how_boots_ended(hall: Hall) -> None:
    rows = {str(r["component"]): r for r in ask(hall, "SELECT * FROM credentials")}
    assert rows["execution"]["ended"] == "revoked"
    assert rows["gateway"]["ended"] is None


def test_a_trace_goes_from_the_tick_to_the_fill(hall: Hall) -> None:
    expected = [
        "md.trade/1",
        "signal/1",
        "order.intent/1",
        "order.decision/1",
        "order.event/1",
        "order.event/1",
        "order.event/1",
        "fill/1",
    ]
    for name in (id_text(hall.story.intent.id), id_text(hall.story.fill.id), "ts-1", "4711"):
        steps = trace(hall.vault.place, name)
        assert [s.type for s in steps] == expected
        assert [s.problem for s in steps] == [""] * len(steps)
        for before, after in itertools.pairwise(steps):
            assert after.parent == before.event_id


def test_a_denied_order_is_traced_as_well(hall: Hall) -> None:
    steps = trace(hall.vault.place, id_text(hall.story.denied.id))
    assert steps[-1].summary == "deny NOTIONAL_EXCEEDS_LIMIT: notional=141 ETH, limit=5 ETH"


def test_an_unknown_order_says_how_to_find_one(hall: Hall) -> None:
    with pytest.raises(TraceError, match=r"ORDER_NOT_RECORDED.*select order_id"):
        trace(hall.vault.place, "nobody")
    # The end of an id, as the live view shows it.
    short = id_text(hall.story.denied.id)[-8:]
    assert trace(hall.vault.place, short) == trace(hall.vault.place, id_text(hall.story.denied.id))
    with pytest.raises(TraceError, match="ORDER_NOT_RECORDED"):
        trace(hall.vault.place, "01935478-0000-7000-8000-000000000000")


def test_a_step_that_was_changed_does_not_verify(hall: Hall, tmp_path: Path) -> None:
    twin = hall.vault.copy(tmp_path / "twin")
    segment = next(s for s in twin.segments("ORDERS") if hall.story.fill.id in twin.table(s)["event_id"].to_pylist())
    row = twin.table(segment)["event_id"].to_pylist().index(hall.story.fill.id)
    data = twin.table(segment)["data"][row].as_py().replace('"qty":"10"', '"qty":"1"')
    twin.rewrite(segment, "data", row, data)
    twin.rehash()
    [bad] = [s for s in trace(twin.place, "ts-1") if s.problem]
    assert bad.type == "fill/1"
    assert "data" in bad.problem
    code, text = run("trace", str(twin.deployment), "ts-1")
    assert code == 1
    assert "NOT VERIFIED" in text


# ---------------------------------------------------------------- the command line


def test_verify_exits_0_clean_and_1_tampered_with_the_position(hall: Hall, tmp_path: Path) -> None:
    code, text = run("verify", str(hall.vault.deployment))
    assert code == 0, text
    assert "OK: everything verifies" in text
    twin = hall.vault.copy(tmp_path / "twin")
    twin.rewrite(twin.segments("ORDERS")[0], "status", 0, "late")
    code, text = run("verify", str(twin.path), "--root", str(twin.place.root))
    assert code == 1
    assert "TAMPERED  ORDERS STATUS 1 times" in text
    assert "at        STATUS at ORDERS 1, stream=ORDERS/" in text


def test_sql_prints_tables_csv_and_json(hall: Hall) -> None:
    directory = str(hall.vault.deployment)
    code, text = run(
        "sql", directory, "SELECT symbol, count(*) AS n FROM trades GROUP BY 1 ORDER BY 1", "--format", "csv"
    )
    assert (code, text.splitlines()) == (0, ["symbol,n", "BTC/USDT,15", "XRP/ETH,16"])
    code, text = run("sql", directory, "-", "--format", "json", stdin="SELECT 1 AS a, NULL AS b, [1, 2] AS c")
    assert json.loads(text) == {"a": 1, "b": None, "c": [1, 2]}
    code, text = run("sql", directory, "--query", "orders", "--limit", "1")
    assert code == 0
    assert "10 @ 0.00141" in text
    assert "1 rows" in text


def test_text_from_the_archive_cannot_drive_the_terminal(hall: Hall) -> None:
    code, text = run("sql", str(hall.vault.deployment), "SELECT chr(27) || '[2J' AS x")
    assert code == 0
    assert "\x1b" not in text
    assert r"\x1b[2J" in text
