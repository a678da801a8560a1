"""The views that SQL sees, over the segments that the manifest names and nothing else.

`log` is the archive as it is stored (see `rows`), with the partition columns `stream` and `day`; everything
else is made from it.  Ids are UUID text, hashes and boots hex, prices and quantities DECIMAL(38,18), times
TIMESTAMP_NS in UTC.  All views but `log`, `events` and `messages` show what counts (`status = 'ok'`) alone.
Every row carries where its proof is: `stream` and `stream_seq` of the sealed message, whose payload
`messages` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb

from tallystick.record.rows import SCHEMA

_MACROS: Final = """
CREATE MACRO uid(b) AS CAST(CAST(lower(hex(b)) AS UUID) AS VARCHAR);
CREATE MACRO hx(b) AS lower(hex(b));
CREATE MACRO plain(x) AS rtrim(rtrim(CAST(x AS VARCHAR), '0'), '.');
CREATE MACRO txt(d, f) AS json_extract_string(d, f);
CREATE MACRO num(d, f) AS TRY_CAST(json_extract_string(d, f) AS DECIMAL(38,18));
CREATE MACRO whole(d, f) AS TRY_CAST(json_extract_string(d, f) AS BIGINT);
CREATE MACRO moment(d, f) AS make_timestamp_ns(TRY_CAST(json_extract_string(d, f) AS BIGINT));
"""

# name -> (what it shows, its SELECT)
VIEWS: Final[dict[str, tuple[str, str]]] = {
    "events": (
        "every archived event, and one row for each message without event",
        """SELECT log_index, stream, stream_seq, pos, subject, kind, strategy, venue, symbol, asset, component,
            hx(boot) AS boot, chain_seq, chain_index, hx(credential) AS credential, uid(event_id) AS event_id, type, ts,
            list_transform(causes, lambda c: uid(c)) AS causes, uid(order_id) AS order_id, statement_time, received,
            hx(leaf) AS leaf, status, code, CAST(data AS JSON) AS data FROM log""",
    ),
    "messages": (
        "every sealed message as it was stored, refused ones included",
        """SELECT log_index, stream, stream_seq, subject, kind, component, hx(boot) AS boot, chain_seq, chain_index, flags,
            hx(credential) AS credential, statement_time, received, hx(leaf) AS leaf, status, code,
            octet_length(payload) AS size, payload FROM log WHERE payload IS NOT NULL""",
    ),
    "trades": (
        "trades at the venues",
        """SELECT ts, venue, symbol, whole(data, '$.trade_id') AS trade_id, num(data, '$.price') AS price,
            num(data, '$.qty') AS qty, moment(data, '$.time') AS time,
            json_extract_string(data, '$.buyer_is_maker') = 'true' AS buyer_is_maker, uid(event_id) AS event_id,
            stream_seq, pos FROM log WHERE stream = 'MARKET' AND type = 'md.trade/1' AND status = 'ok'""",
    ),
    "quotes": (
        "best bids and asks",
        """SELECT ts, venue, symbol, num(data, '$.bid') AS bid, num(data, '$.bid_qty') AS bid_qty,
            num(data, '$.ask') AS ask, num(data, '$.ask_qty') AS ask_qty, moment(data, '$.time') AS time,
            uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'MARKET' AND type = 'md.quote/1' AND status = 'ok'""",
    ),
    "signals": (
        "what strategies thought",
        """SELECT ts, strategy, venue, symbol, txt(data, '$.name') AS name, num(data, '$.value') AS value,
            txt(data, '$.text') AS text, uid(event_id) AS event_id, list_transform(causes, lambda c: uid(c)) AS causes,
            stream_seq, pos FROM log WHERE stream = 'SIGNALS' AND type = 'signal/1' AND status = 'ok'""",
    ),
    "intents": (
        "what strategies asked for",
        """SELECT ts, strategy, venue, symbol, uid(event_id) AS order_id, txt(data, '$.side') AS side,
            txt(data, '$.type') AS type, num(data, '$.qty') AS qty, num(data, '$.price') AS price,
            txt(data, '$.tif') AS tif, list_transform(causes, lambda c: uid(c)) AS causes, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND log.type = 'order.intent/1' AND status = 'ok'""",
    ),
    "decisions": (
        "the gateway's answers, with the permit where there is one",
        """SELECT ts, strategy, venue, symbol, uid(event_id) AS decision_id, txt(data, '$.intent_id') AS order_id,
            txt(data, '$.verdict') AS verdict,
            from_json(data -> '$.denials', '[{"code":"VARCHAR","text":"VARCHAR"}]') AS denials,
            txt(data, '$.policy_hash') AS policy_hash, from_json(data -> '$.policies', '["VARCHAR"]') AS policies,
            txt(data, '$.permit.account') AS account, txt(data, '$.permit.order.client_order_id') AS client_order_id,
            txt(data, '$.permit.order.quantity') AS permit_quantity, txt(data, '$.permit.order.price') AS permit_price,
            txt(data, '$.permit.audience') AS audience, moment(data, '$.permit.expires_at') AS expires_at, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'order.decision/1' AND status = 'ok'""",
    ),
    "order_events": (
        "what happened to orders, step by step",
        """SELECT ts, strategy, venue, symbol, uid(order_id) AS order_id, uid(event_id) AS event_id,
            txt(data, '$.decision_id') AS decision_id, txt(data, '$.client_order_id') AS client_order_id,
            txt(data, '$.state') AS state, txt(data, '$.venue_order_id') AS venue_order_id,
            txt(data, '$.status') AS status, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            num(data, '$.executed') AS executed, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'order.event/1' AND log.status = 'ok'""",
    ),
    "fills": (
        "executions at the venues",
        """SELECT ts, strategy, venue, symbol, uid(order_id) AS order_id, txt(data, '$.client_order_id') AS client_order_id,
            txt(data, '$.venue_order_id') AS venue_order_id, whole(data, '$.trade_id') AS trade_id,
            txt(data, '$.side') AS side, num(data, '$.price') AS price, num(data, '$.qty') AS qty,
            num(data, '$.commission') AS commission, txt(data, '$.commission_asset') AS commission_asset,
            json_extract_string(data, '$.maker') = 'true' AS maker, moment(data, '$.time') AS time,
            uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'fill/1' AND status = 'ok'""",
    ),
    "orders": (
        "one row an intent: its decision, its newest state, its fills",
        """SELECT i.ts, i.strategy, i.venue, i.symbol, i.order_id, i.side, i.type, i.qty, i.price, i.tif,
            d.d.verdict AS verdict, list_transform(d.d.denials, lambda x: x.code) AS denial_codes,
            d.d.decision_id AS decision_id, d.d.client_order_id AS client_order_id,
            d.d.permit_quantity AS permit_quantity, d.d.permit_price AS permit_price, d.d.expires_at AS expires_at,
            s.s.state AS state, s.s.status AS status, s.s.venue_order_id AS venue_order_id, s.s.code AS code,
            s.s.text AS text,
            coalesce(f.filled, 0) AS filled, coalesce(f.fills, []) AS fills, f.commission, i.stream_seq
            FROM intents i
            LEFT JOIN (SELECT order_id, arg_max(decisions, stream_seq) AS d FROM decisions GROUP BY order_id) d
                ON d.order_id = i.order_id
            LEFT JOIN (SELECT order_id, arg_max(order_events, stream_seq) AS s FROM order_events GROUP BY order_id) s
                ON s.order_id = i.order_id
            LEFT JOIN (SELECT order_id, sum(qty) AS filled, sum(commission) AS commission,
                list(plain(qty) || ' @ ' || plain(price) ORDER BY stream_seq, pos) AS fills FROM fills
                GROUP BY order_id) f ON f.order_id = i.order_id""",
    ),
    "positions": (
        "positions of strategies",
        """SELECT ts, strategy, venue, symbol, num(data, '$.qty') AS qty, num(data, '$.average_price') AS average_price,
            num(data, '$.realized') AS realized, whole(data, '$.fills') AS fills, uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'position/1' AND status = 'ok'""",
    ),
    "balances": (
        "balances at the venues",
        """SELECT ts, venue, asset, num(data, '$.free') AS free, num(data, '$.locked') AS locked,
            uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'balance/1' AND status = 'ok'""",
    ),
    "credentials": (
        "sessions that the authority issued, and how their boots ended",
        """SELECT i.ts, split_part(i.subject, '.', 2) AS component, txt(i.data, '$.boot') AS boot,
            txt(i.data, '$.credential_hash') AS credential, txt(i.data, '$.session_key') AS session_key,
            txt(i.data, '$.method') AS method, moment(i.data, '$.issued_at') AS issued_at,
            moment(i.data, '$.expires_at') AS expires_at, e.ended_at, e.how AS ended, e.reason, i.stream_seq, i.pos
            FROM log i LEFT JOIN (
                SELECT txt(data, '$.boot') AS boot, min(ts) AS ended_at, arg_min(txt(data, '$.reason'), ts) AS reason,
                    arg_min(CASE type WHEN 'cred.revoked/1' THEN 'revoked' ELSE 'ended' END, ts) AS how
                FROM log WHERE stream = 'SECURITY' AND type IN ('cred.revoked/1', 'cred.ended/1') AND status = 'ok'
                GROUP BY 1) e ON e.boot = txt(i.data, '$.boot')
            WHERE i.stream = 'SECURITY' AND i.type = 'cred.issued/1' AND i.status = 'ok'""",
    ),
    "alerts": (
        "what detectors found",
        """SELECT ts, split_part(subject, '.', 2) AS detector, split_part(subject, '.', 3) AS severity,
            txt(data, '$.code') AS code, txt(data, '$.scope') AS scope, txt(data, '$.text') AS text,
            num(data, '$.value') AS value, num(data, '$.limit') AS "limit",
            list_transform(causes, lambda c: uid(c)) AS causes, uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'alert/1' AND log.status = 'ok'""",
    ),
    "breakers": (
        "breakers tripped and re-armed",
        """SELECT ts, split_part(subject, '.', 3) AS scope,
            CASE type WHEN 'breaker.tripped/1' THEN 'tripped' ELSE 'rearmed' END AS change,
            txt(data, '$.reason') AS reason, txt(data, '$.by') AS "by", txt(data, '$.note') AS note,
            uid(event_id) AS event_id, stream_seq, pos FROM log WHERE stream = 'SECURITY'
            AND type IN ('breaker.tripped/1', 'breaker.rearmed/1') AND status = 'ok'""",
    ),
    "notices": (
        "what components told security people",
        """SELECT ts, component, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            txt(data, '$.evidence') AS evidence, uid(event_id) AS event_id, stream_seq, pos
            FROM log WHERE stream = 'GUARD' AND type = 'guard.notice/1' AND log.status = 'ok'""",
    ),
    "dead": (
        "messages that components could not process or refused",
        """SELECT ts, component, txt(data, '$.subject') AS subject, txt(data, '$.stream') AS stream,
            whole(data, '$.stream_seq') AS stream_seq, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            txt(data, '$.digest') AS digest, uid(event_id) AS event_id, log.stream_seq AS guard_seq
            FROM log WHERE log.stream = 'GUARD' AND type = 'dead/1' AND log.status = 'ok'""",
    ),
}

# name -> (title, query)
QUERIES: Final[dict[str, tuple[str, str]]] = {
    "orders": (
        "all orders with their permit and fills",
        """SELECT ts, order_id, strategy, symbol, side, qty, price, verdict, decision_id AS permit, client_order_id,
            state, filled, fills FROM orders WHERE verdict = 'permit' ORDER BY ts""",
    ),
    "denials": (
        "what was denied, and why",
        """SELECT * FROM (
            SELECT d.ts, 'order denied' AS what, d.strategy AS who, i.symbol AS about, i.side, i.qty, i.price,
                r.code, r.text FROM decisions d JOIN intents i USING (order_id), unnest(d.denials) AS u(r)
            UNION ALL
            SELECT received, 'message ' || status, coalesce(component, '?'), subject, NULL, NULL, NULL, code,
                stream || ' ' || stream_seq FROM messages WHERE status <> 'ok'
            ) ORDER BY ts""",
    ),
    "publishers": (
        "who published what",
        """SELECT coalesce(component, '(nobody: unverified)') AS component, coalesce(kind, split_part(subject, '.', 1))
            AS kind, count(*) FILTER (payload IS NOT NULL) AS messages, count(event_id) AS events,
            count(DISTINCT credential) AS sessions, count(*) FILTER (status <> 'ok') AS without_effect,
            min(received) AS first, max(received) AS last FROM log GROUP BY ALL ORDER BY ALL""",
    ),
}


def define(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """Make the views over these Parquet files; with none, over nothing."""
    if files:
        names = ", ".join(_quoted(str(path)) for path in files)
        source = f"SELECT * FROM read_parquet([{names}], hive_partitioning = true)"  # noqa: S608 - quoted paths
    else:
        connection.register("nothing", SCHEMA.empty_table())
        source = "SELECT *, CAST(NULL AS DATE) AS day, CAST(NULL AS VARCHAR) AS stream FROM nothing"
    connection.execute(f"CREATE VIEW log AS {source}")
    connection.execute(_MACROS)
    for name, (_, select) in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {select}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
