"""The views that SQL sees, over the segments that the manifest names and nothing else.

`log` is the archive as it is stored (see `rows`), with the partition columns `stream` and `day`; everything
else is made from it.  Ids are UUID text, hashes and boots hex, prices and quantities DECIMAL(38,18), times
TIMESTAMP_NS in UTC.  All views but `log`, `events` and `messages` show what counts (`status = 'ok'`) alone.
Every row carries where its proof is: `stream` and `stream_seq` of the sealed message, whose payload
`messages` holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import duckdb

from tallystick.record.arithmetic import MACROS
from tallystick.record.rows import SCHEMA

# The whole past, Unix ns.
ALWAYS: Final = (0, 2**63 - 1)

_MACROS: Final = """
CREATE MACRO uid(b) AS CAST(CAST(lower(hex(b)) AS UUID) AS VARCHAR);
CREATE MACRO hx(b) AS lower(hex(b));
CREATE MACRO plain(x) AS rtrim(rtrim(CAST(x AS VARCHAR), '0'), '.');
CREATE MACRO txt(d, f) AS json_extract_string(d, f);
CREATE MACRO num(d, f) AS TRY_CAST(json_extract_string(d, f) AS DECIMAL(38,18));
CREATE MACRO whole(d, f) AS TRY_CAST(json_extract_string(d, f) AS BIGINT);
CREATE MACRO moment(d, f) AS make_timestamp_ns(TRY_CAST(json_extract_string(d, f) AS BIGINT));
CREATE MACRO parts(x) AS struct_pack(i := sum(trunc(x)), f := sum(x - trunc(x)));
CREATE MACRO total(p) AS CAST(p.i AS DECIMAL(38,18)) + p.f;
CREATE MACRO base(s) AS split_part(s, '/', 1);
CREATE MACRO quote(s) AS split_part(split_part(s, '/', 2), ':', 1);
"""

# An order is what one strategy names at one venue by one id: two strategies that use the same id are two orders,
# and an order that nobody asked for or permitted is shown all the same.  Of several decisions the permit that was
# carried out counts first, then any other permit, then the first denial; a cancellation decides nothing about
# the order itself.  Of several intents under one id it is the one whose hash the decision names.
_ORDERS: Final = """
    WITH ranked AS (
        SELECT d.*, CASE WHEN verdict = 'permit' AND e.decision_id IS NOT NULL THEN 0 WHEN verdict = 'permit' THEN 1
            WHEN verdict = 'deny' AND answers = order_id THEN 2 ELSE 3 END AS rank,
            concat_ws(' ', verdict, nullif(array_to_string(list_transform(denials, lambda x: x.code), ' '), '')) AS said
        FROM decisions d LEFT JOIN (SELECT DISTINCT decision_id FROM order_events) e USING (decision_id)),
    decided AS (
        SELECT strategy, venue, symbol, order_id AS key, first(r ORDER BY rank, log_index, pos) AS d,
            list(said ORDER BY rank, log_index, pos) AS decisions FROM ranked r GROUP BY ALL),
    asked AS (
        SELECT i.*, order_id AS key FROM intents i LEFT JOIN (SELECT strategy, venue, symbol, key AS order_id,
            d.intent_hash AS wanted FROM decided) USING (strategy, venue, symbol, order_id)
        QUALIFY row_number() OVER (PARTITION BY strategy, venue, symbol, order_id
            ORDER BY coalesce(intent_hash = wanted, false) DESC, log_index, pos) = 1),
    happened AS (
        SELECT strategy, venue, symbol, coalesce(order_id, client_order_id) AS key,
            first(e ORDER BY log_index, pos) AS began, last(e ORDER BY log_index, pos) AS s,
            list(concat_ws(' ', state, nullif(e.status, ''), nullif(code, '')) ORDER BY log_index, pos) AS states
        FROM order_events e GROUP BY ALL),
    filled AS (
        SELECT strategy, venue, symbol, coalesce(order_id, client_order_id) AS key,
            first(f ORDER BY log_index, pos) AS began, parts(qty) AS filled, parts(value) AS filled_value,
            CASE WHEN count(*) = count(fee_quote) THEN parts(fee_quote) END AS fee_quote,
            list(plain(qty) || ' @ ' || plain(price) ORDER BY log_index, pos) AS fills,
            list(plain(commission) || ' ' || commission_asset ORDER BY log_index, pos) AS commissions
        FROM fills f GROUP BY ALL),
    known AS (
        SELECT strategy, venue, symbol, key FROM asked UNION SELECT strategy, venue, symbol, key FROM decided
        WHERE d.rank < 3 UNION SELECT strategy, venue, symbol, key FROM happened
        UNION SELECT strategy, venue, symbol, key FROM filled)
    SELECT coalesce(i.ts, d.d.ts, h.began.ts, f.began.ts) AS ts, strategy, venue, symbol,
        coalesce(i.order_id, d.d.order_id, h.s.order_id, f.began.order_id) AS order_id,
        i.side, i.type, i.qty, i.price, i.value, i.tif,
        CASE WHEN d.d.rank < 3 THEN d.d.verdict END AS verdict,
        CASE WHEN d.d.rank < 3 THEN list_transform(d.d.denials, lambda x: x.code) END AS denial_codes,
        CASE WHEN d.d.rank < 3 THEN d.d.decision_id END AS decision_id, coalesce(d.decisions, []) AS decisions,
        coalesce(d.d.client_order_id, h.s.client_order_id, f.began.client_order_id) AS client_order_id,
        d.d.permit_quantity AS permit_quantity, d.d.permit_price AS permit_price, d.d.expires_at AS expires_at,
        h.s.state AS state, coalesce(h.states, []) AS states, h.s.status AS status,
        coalesce(nullif(h.s.venue_order_id, ''), f.began.venue_order_id) AS venue_order_id,
        h.s.code AS code, h.s.text AS text, CASE WHEN f.fills IS NULL THEN 0 ELSE TRY(total(f.filled)) END AS filled,
        TRY(total(f.filled_value)) AS filled_value, TRY(total(f.fee_quote)) AS fee_quote,
        coalesce(f.fills, []) AS fills, coalesce(f.commissions, []) AS commissions,
        coalesce(i.log_index, d.d.log_index, h.began.log_index, f.began.log_index) AS log_index,
        coalesce(i.received, d.d.received, h.began.received, f.began.received) AS received,
        coalesce(i.stream_seq, d.d.stream_seq, h.began.stream_seq, f.began.stream_seq) AS stream_seq,
        coalesce(i.pos, d.d.pos, h.began.pos, f.began.pos) AS pos
    FROM known LEFT JOIN asked i USING (strategy, venue, symbol, key)
        LEFT JOIN decided d USING (strategy, venue, symbol, key)
        LEFT JOIN happened h USING (strategy, venue, symbol, key)
        LEFT JOIN filled f USING (strategy, venue, symbol, key)"""

# name -> (what it shows, its SELECT); the columns are explained in `columns`.
VIEWS: Final[dict[str, tuple[str, str]]] = {
    "events": (
        "every archived event, and one row for each message without event",
        """SELECT log_index, received, stream, stream_seq, pos, subject, kind, strategy, venue, symbol, asset, component,
            hx(boot) AS boot, chain_seq, chain_index, hx(credential) AS credential, uid(event_id) AS event_id, type, ts,
            list_transform(causes, lambda c: uid(c)) AS causes, uid(order_id) AS order_id, statement_time,
            hx(leaf) AS leaf, status, code, CAST(data AS JSON) AS data FROM log""",
    ),
    "messages": (
        "every sealed message as it was stored, refused ones included",
        """SELECT log_index, received, stream, stream_seq, subject, kind, component, hx(boot) AS boot, chain_seq,
            chain_index, flags, hx(credential) AS credential, statement_time, hx(leaf) AS leaf, status, code,
            octet_length(payload) AS size, payload FROM log WHERE payload IS NOT NULL""",
    ),
    "trades": (
        "trades at the venues",
        """SELECT ts, venue, symbol, whole(data, '$.trade_id') AS trade_id, num(data, '$.price') AS price,
            num(data, '$.qty') AS qty, TRY(product(num(data, '$.price'), num(data, '$.qty'))) AS value,
            moment(data, '$.time') AS time, txt(data, '$.buyer_is_maker') = 'true' AS buyer_is_maker,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'MARKET' AND type = 'md.trade/1' AND status = 'ok'""",
    ),
    "quotes": (
        "best bids and asks",
        """SELECT ts, venue, symbol, num(data, '$.bid') AS bid, num(data, '$.bid_qty') AS bid_qty,
            num(data, '$.ask') AS ask, num(data, '$.ask_qty') AS ask_qty, moment(data, '$.time') AS time,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'MARKET' AND type = 'md.quote/1' AND status = 'ok'""",
    ),
    "feeds": (
        "the state of each market data feed, whenever it changed",
        """SELECT ts, venue, txt(data, '$.symbol') AS symbol, txt(data, '$.state') AS state, txt(data, '$.text') AS text,
            whole(data, '$.missing_from') AS missing_from, whole(data, '$.missing_to') AS missing_to,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'MARKET' AND type = 'ref.feed/1' AND log.status = 'ok'""",
    ),
    "signals": (
        "what strategies thought",
        """SELECT ts, strategy, venue, symbol, txt(data, '$.name') AS name, num(data, '$.value') AS value,
            txt(data, '$.text') AS text, uid(event_id) AS event_id, list_transform(causes, lambda c: uid(c)) AS causes,
            log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SIGNALS' AND type = 'signal/1' AND status = 'ok'""",
    ),
    "intents": (
        "what strategies asked for",
        """SELECT ts, strategy, venue, symbol, uid(event_id) AS order_id, txt(data, '$.side') AS side,
            txt(data, '$.type') AS type, num(data, '$.qty') AS qty, num(data, '$.price') AS price,
            TRY(product(num(data, '$.price'), num(data, '$.qty'))) AS value, txt(data, '$.tif') AS tif,
            list_transform(causes, lambda c: uid(c)) AS causes, hx(leaf) AS intent_hash,
            log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND log.type = 'order.intent/1' AND status = 'ok'""",
    ),
    "cancels": (
        "what strategies asked to cancel, and what the gateway answered",
        """SELECT c.ts, c.strategy, c.venue, c.symbol, uid(c.event_id) AS cancel_id, txt(c.data, '$.intent_id') AS order_id,
            txt(d.data, '$.verdict') AS verdict, json_extract_string(d.data, '$.denials[*].code') AS denial_codes,
            uid(d.event_id) AS decision_id, c.log_index, c.received, c.stream_seq, c.pos
            FROM log c LEFT JOIN (
                SELECT * FROM log WHERE stream = 'ORDERS' AND type = 'order.decision/1' AND status = 'ok'
                QUALIFY row_number() OVER (PARTITION BY causes[1], subject ORDER BY log_index, pos) = 1
            ) d ON d.causes[1] = c.event_id AND (d.strategy, d.venue, d.symbol) = (c.strategy, c.venue, c.symbol)
            WHERE c.stream = 'ORDERS' AND c.type = 'order.cancel/1' AND c.status = 'ok'""",
    ),
    "decisions": (
        "the gateway's answers, with the permit where there is one",
        """SELECT ts, strategy, venue, symbol, uid(event_id) AS decision_id,
            coalesce(c.cancels, txt(data, '$.intent_id')) AS order_id,
            uid(causes[1]) AS answers, txt(data, '$.verdict') AS verdict,
            from_json(data -> '$.denials', '[{"code":"VARCHAR","text":"VARCHAR"}]') AS denials,
            txt(data, '$.policy_hash') AS policy_hash, from_json(data -> '$.policies', '["VARCHAR"]') AS policies,
            txt(data, '$.intent_hash') AS intent_hash,
            txt(data, '$.permit.account') AS account, txt(data, '$.permit.order.client_order_id') AS client_order_id,
            txt(data, '$.permit.order.quantity') AS permit_quantity, txt(data, '$.permit.order.price') AS permit_price,
            txt(data, '$.permit.audience') AS audience, moment(data, '$.permit.expires_at') AS expires_at,
            log_index, received, stream_seq, pos
            FROM log LEFT JOIN (
                SELECT event_id AS asked, strategy AS asker, any_value(txt(data, '$.intent_id')) AS cancels FROM log
                WHERE stream = 'ORDERS' AND type = 'order.cancel/1' AND status = 'ok' GROUP BY ALL
            ) c ON asked = causes[1] AND asker = strategy
            WHERE stream = 'ORDERS' AND type = 'order.decision/1' AND status = 'ok'""",
    ),
    "order_events": (
        "what happened to orders, step by step",
        """SELECT ts, strategy, venue, symbol, uid(order_id) AS order_id, uid(event_id) AS event_id,
            txt(data, '$.decision_id') AS decision_id, txt(data, '$.client_order_id') AS client_order_id,
            txt(data, '$.state') AS state, txt(data, '$.venue_order_id') AS venue_order_id,
            txt(data, '$.status') AS status, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            num(data, '$.executed') AS executed, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'order.event/1' AND log.status = 'ok'""",
    ),
    "fills": (
        "executions at the venues",
        """SELECT ts, strategy, venue, symbol, order_id, client_order_id, venue_order_id, trade_id, side, price, qty, value,
            CASE side WHEN 'buy' THEN -value ELSE value END AS signed_value, commission, commission_asset,
            CASE commission_asset WHEN quote(symbol) THEN commission
                WHEN base(symbol) THEN TRY(product(commission, price)) END AS fee_quote,
            maker, time, event_id, log_index, received, stream_seq, pos FROM (
            SELECT *, TRY(product(price, qty)) AS value FROM (
            SELECT ts, strategy, venue, symbol, uid(order_id) AS order_id,
            txt(data, '$.client_order_id') AS client_order_id, txt(data, '$.venue_order_id') AS venue_order_id,
            whole(data, '$.trade_id') AS trade_id, txt(data, '$.side') AS side, num(data, '$.price') AS price,
            num(data, '$.qty') AS qty, num(data, '$.commission') AS commission,
            txt(data, '$.commission_asset') AS commission_asset, txt(data, '$.maker') = 'true' AS maker,
            moment(data, '$.time') AS time, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'fill/1' AND status = 'ok'))""",
    ),
    "orders": (
        "one row an order, whether a strategy asked for it or not: all its decisions, its states, its fills",
        _ORDERS,
    ),
    "positions": (
        "positions of strategies",
        """SELECT ts, strategy, venue, symbol, num(data, '$.qty') AS qty, num(data, '$.average_price') AS average_price,
            num(data, '$.realized') AS realized, num(data, '$.fees') AS fees,
            TRY(num(data, '$.realized') - num(data, '$.fees')) AS net,
            from_json(data -> '$.other_fees', '[{"asset":"VARCHAR","amount":"VARCHAR"}]') AS other_fees,
            whole(data, '$.fills') AS fills, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'position/1' AND status = 'ok'""",
    ),
    "balances": (
        "balances at the venues",
        """SELECT ts, venue, asset, num(data, '$.free') AS free, num(data, '$.locked') AS locked,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'balance/1' AND status = 'ok'""",
    ),
    "credentials": (
        "sessions that the authority issued, and how their boots ended",
        """SELECT i.ts, split_part(i.subject, '.', 2) AS component, txt(i.data, '$.boot') AS boot,
            txt(i.data, '$.credential_hash') AS credential, txt(i.data, '$.session_key') AS session_key,
            txt(i.data, '$.method') AS method, txt(i.data, '$.certificate') AS certificate, moment(i.data, '$.issued_at') AS issued_at,
            moment(i.data, '$.expires_at') AS expires_at, e.ended_at, e.how AS ended, e.reason,
            i.log_index, i.received, i.stream_seq, i.pos
            FROM log i LEFT JOIN (
                SELECT txt(data, '$.boot') AS boot, min(ts) AS ended_at, arg_min(txt(data, '$.reason'), ts) AS reason,
                    arg_min(CASE type WHEN 'cred.revoked/1' THEN 'revoked' ELSE 'ended' END, ts) AS how
                FROM log WHERE stream = 'SECURITY' AND type IN ('cred.revoked/1', 'cred.ended/1') AND status = 'ok'
                GROUP BY 1) e ON e.boot = txt(i.data, '$.boot')
            WHERE i.stream = 'SECURITY' AND i.type = 'cred.issued/1' AND i.status = 'ok'""",
    ),
    "certificates": (
        "certificates that the authority renewed",
        """SELECT ts, split_part(subject, '.', 2) AS component, txt(data, '$.certificate') AS certificate,
            txt(data, '$.replaces') AS replaces, moment(data, '$.issued_at') AS issued_at,
            moment(data, '$.expires_at') AS expires_at, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'cred.certificate/1' AND status = 'ok'""",
    ),
    "revocations": (
        "the operator's word on components: revoked, or admitted again; said again from time to time",
        """SELECT ts, split_part(subject, '.', 2) AS component, TRY_CAST(said ->> '$.number' AS BIGINT) AS number,
            TRY_CAST(said ->> '$.revoked' AS BOOLEAN) AS revoked, moment(said, '$.since') AS since,
            said ->> '$.reason' AS reason, note, event_id, log_index, received, stream_seq, pos FROM (
            SELECT *, TRY_CAST(split_part(note, chr(10) || chr(10), 1) AS JSON) AS said FROM (
            SELECT ts, subject, txt(data, '$.note') AS note, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'cred.revocation/1' AND status = 'ok'))""",
    ),
    "arming": (
        "the operator's leases that let a component trade",
        """SELECT ts, split_part(subject, '.', 3) AS component, moment(lease, '$.start') AS starts_at,
            moment(lease, '$.until') AS ends_at, from_json(lease -> '$.venues', '["VARCHAR"]') AS venues, note,
            event_id, log_index, received, stream_seq, pos FROM (
            SELECT *, TRY_CAST(split_part(note, chr(10) || chr(10), 1) AS JSON) AS lease FROM (
            SELECT ts, subject, txt(data, '$.note') AS note, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'control.arm/1' AND status = 'ok'))""",
    ),
    "configs": (
        "the configuration that components state they run with",
        """SELECT ts, component, txt(data, '$.name') AS name, txt(data, '$.digest') AS digest, txt(data, '$.text') AS text,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'control.config/1' AND status = 'ok'""",
    ),
    "roots": (
        "the trust root that each component states it decides by",
        """SELECT ts, component, txt(data, '$.note') AS note, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'control.root/1' AND status = 'ok'""",
    ),
    "incidents": (
        "the steps of the answers to compromises, as the breaker published them; `note` holds the operator's signature",
        """SELECT ts, said ->> '$.incident' AS incident, said ->> '$.target' AS target,
            TRY_CAST(said ->> '$.number' AS BIGINT) AS number, said ->> '$.step' AS step,
            TRY_CAST(said ->> '$.done' AS BOOLEAN) AS done,
            said ->> '$.text' AS text, said ->> '$.evidence' AS evidence,
            note, event_id, log_index, received, stream_seq, pos FROM (
            SELECT *, TRY_CAST(split_part(note, chr(10) || chr(10), 1) AS JSON) AS said FROM (
            SELECT ts, txt(data, '$.note') AS note, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'control.incident/1' AND status = 'ok'))""",
    ),
    "rotations": (
        "the steps by which API keys at the venue were changed",
        """SELECT ts, txt(data, '$.rotation') AS rotation, txt(data, '$.venue') AS venue, txt(data, '$.holder') AS holder,
            txt(data, '$.step') AS step, txt(data, '$.old') AS old, nullif(txt(data, '$.new'), '') AS new,
            txt(data, '$.text') AS text, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'control.rotation/1' AND status = 'ok'""",
    ),
    "corrections": (
        "what the operator set right of positions and orders",
        """SELECT ts, said ->> '$.strategy' AS strategy, said ->> '$.venue' AS venue, said ->> '$.symbol' AS symbol,
            nullif(said ->> '$.was', '') AS was, nullif(said ->> '$.position', '') AS position,
            nullif(said ->> '$.intent_id', '') AS corrected_intent, nullif(said ->> '$.executed', '') AS corrected_executed,
            said ->> '$.reason' AS reason, note, event_id, log_index, received, stream_seq, pos FROM (
            SELECT *, TRY_CAST(split_part(note, chr(10) || chr(10), 1) AS JSON) AS said FROM (
            SELECT ts, txt(data, '$.note') AS note, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'ORDERS' AND type = 'order.correction/1' AND status = 'ok'))""",
    ),
    "checkpoints": (
        "what the audit sealed about the archive's manifest",
        """SELECT ts, whole(data, '$.entries') AS entries, txt(data, '$.head') AS head, whole(data, '$.rows') AS rows,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'audit.checkpoint/1' AND status = 'ok'""",
    ),
    "totals": (
        "what each stream of the archive came to, beside each checkpoint",
        """SELECT ts, txt(data, '$.stream') AS total_of, whole(data, '$.messages') AS messages,
            whole(data, '$.last_seq') AS last_seq, txt(data, '$.digest') AS digest,
            uid(event_id) AS event_id, log_index, received, log.stream_seq, pos
            FROM log WHERE log.stream = 'SECURITY' AND type = 'audit.stream/1' AND status = 'ok'""",
    ),
    "alerts": (
        "what detectors found",
        """SELECT ts, split_part(subject, '.', 2) AS detector, split_part(subject, '.', 3) AS severity,
            txt(data, '$.code') AS code, txt(data, '$.scope') AS scope, txt(data, '$.text') AS text,
            num(data, '$.value') AS value, num(data, '$.limit') AS "limit",
            list_transform(causes, lambda c: uid(c)) AS causes, uid(event_id) AS event_id,
            log_index, received, stream_seq, pos
            FROM log WHERE stream = 'SECURITY' AND type = 'alert/1' AND log.status = 'ok'""",
    ),
    "breakers": (
        "breakers tripped and re-armed",
        """SELECT ts, split_part(subject, '.', 3) AS scope,
            CASE type WHEN 'breaker.tripped/1' THEN 'tripped' ELSE 'rearmed' END AS change,
            txt(data, '$.reason') AS reason, txt(data, '$.by') AS "by", txt(data, '$.note') AS note,
            uid(event_id) AS event_id, log_index, received, stream_seq, pos FROM log WHERE stream = 'SECURITY'
            AND type IN ('breaker.tripped/1', 'breaker.rearmed/1') AND status = 'ok'""",
    ),
    "notices": (
        "what components told security people",
        """SELECT ts, component, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            txt(data, '$.evidence') AS evidence, uid(event_id) AS event_id, log_index, received, stream_seq, pos
            FROM log WHERE stream = 'GUARD' AND type = 'guard.notice/1' AND log.status = 'ok'""",
    ),
    "dead": (
        "messages that components could not process or refused",
        """SELECT ts, component, txt(data, '$.subject') AS subject, txt(data, '$.stream') AS stream,
            whole(data, '$.stream_seq') AS refused_seq, txt(data, '$.code') AS code, txt(data, '$.text') AS text,
            txt(data, '$.digest') AS digest, uid(event_id) AS event_id, log_index, received, log.stream_seq, pos
            FROM log WHERE log.stream = 'GUARD' AND type = 'dead/1' AND log.status = 'ok'""",
    ),
}

# name -> (title, query)
QUERIES: Final[dict[str, tuple[str, str]]] = {
    "orders": (
        "all orders that were permitted or happened, with their decisions and fills",
        """SELECT ts, order_id, strategy, symbol, side, qty, price, decisions, decision_id AS permit, client_order_id,
            state, filled, fills FROM orders
            WHERE verdict = 'permit' OR state IS NOT NULL OR filled > 0 ORDER BY ts, log_index""",
    ),
    "denials": (
        "what was denied, and why",
        """SELECT * FROM (
            SELECT d.ts, CASE WHEN d.answers = d.order_id THEN 'order denied' ELSE 'cancel denied' END AS what,
                d.strategy AS who, d.symbol AS about, i.side, i.qty, i.price, r.code, r.text
            FROM decisions d LEFT JOIN orders i USING (strategy, venue, symbol, order_id), unnest(d.denials) AS u(r)
            UNION ALL
            SELECT received, 'message ' || status, coalesce(component, '?'), subject, NULL, NULL, NULL, code,
                stream || ' ' || stream_seq FROM messages WHERE status <> 'ok'
            ) ORDER BY ts""",
    ),
    "profit": (
        "profit of each strategy as its newest position has it: gross, fees, net",
        """SELECT ts, strategy, venue, symbol, qty, average_price, realized AS gross, fees, net, other_fees, fills
            FROM positions QUALIFY row_number() OVER (PARTITION BY strategy, venue, symbol ORDER BY log_index DESC, pos DESC)
            = 1 ORDER BY strategy, venue, symbol""",
    ),
    "publishers": (
        "who published what",
        """SELECT coalesce(component, '(nobody: unverified)') AS component, coalesce(kind, split_part(subject, '.', 1))
            AS kind, count(*) FILTER (payload IS NOT NULL) AS messages, count(event_id) AS events,
            count(DISTINCT credential) AS sessions, count(*) FILTER (status <> 'ok') AS without_effect,
            min(received) AS first, max(received) AS last FROM log GROUP BY ALL ORDER BY ALL""",
    ),
}


def define(connection: duckdb.DuckDBPyConnection, paths: Mapping[str, Sequence[str]], since: int, until: int) -> None:
    """Make the views over these Parquet files of each stream; with none, over nothing.

    `log` holds what the broker stored from `since` and before `until` (Unix ns).
    """
    if paths:
        # The paths name descriptors, not folders: what the folders say is added here.
        source = " UNION ALL ".join(
            f"SELECT *, CAST(received AS DATE) AS day, '{stream}' AS stream FROM read_parquet([{', '.join(map(_quoted, files))}])"  # noqa: S608 - quoted paths
            for stream, files in paths.items()
        )
    else:
        connection.register("nothing", SCHEMA.empty_table())
        source = "SELECT *, CAST(NULL AS DATE) AS day, CAST(NULL AS VARCHAR) AS stream FROM nothing"
    # `since` and `until` are numbers of ours.
    bounds = [f"received >= make_timestamp_ns({since})"] if since > ALWAYS[0] else []
    bounds += [f"received < make_timestamp_ns({until})"] if until < ALWAYS[1] else []
    within = f"SELECT * FROM ({source}) WHERE {' AND '.join(bounds)}" if bounds else source  # noqa: S608 - numbers
    connection.execute(f"CREATE VIEW log AS {within}")
    connection.execute(_MACROS + MACROS)
    for name, (_, select) in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {select}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
