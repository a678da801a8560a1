"""What the columns of the views mean, with their units; `docs/sql.md` is made of it.

A name means the same in every view unless `view.name` says otherwise.
"""

from __future__ import annotations

from typing import Final

import duckdb

from tallystick.record.views import VIEWS

COLUMNS: Final[dict[str, str]] = {
    "account": "the venue account that the permit names",
    "answers": "id of the event that was answered: the intent's, or the cancellation's",
    "ask": "lowest ask, in quote units for one base unit",
    "ask_qty": "quantity at the ask, in base units",
    "asset": "the asset, such as XRP",
    "audience": "boot of the custody process that the permit is for, hex",
    "average_price": "average entry price of the open quantity, in quote units, without fees; 0 when flat",
    "bid": "highest bid, in quote units for one base unit",
    "bid_qty": "quantity at the bid, in base units",
    "boot": "the process's start, 16 bytes hex: a new one with each start",
    "buyer_is_maker": "whether the buyer's order had been resting: then the seller took",
    "by": "who tripped it",
    "cancel_id": "id of the cancellation's own event",
    "causes": "ids of the events that led to it",
    "chain_index": "position of the message in its publisher's flush",
    "chain_seq": "number of the flush in its publisher's chain of this stream",
    "change": "tripped or rearmed",
    "client_order_id": "the name under which the venue knows the order from us",
    "code": "a stable code (`tallystick explain CODE`), or the venue's own number",
    "commission": "what the venue took, in units of `commission_asset`",
    "commission_asset": "the asset of the commission: base, quote, or a third one",
    "commissions": "the commission of each fill with its asset, in their order",
    "component": "who sealed it, by its identity name",
    "credential": "SHA-256 of the session's credential, hex",
    "data": "the event's own fields as JSON; decimals are text, exactly as on the wire",
    "decision_id": "id of the decision that counts",
    "decisions": "every decision on the order, the one that counts first: verdict and codes; a permit that was carried "
    "out counts before other permits, those before the first denial; cancellations come last",
    "denial_codes": "codes of the decision that counts; empty for a permit",
    "denials": "the reasons: code, and text with numbers",
    "detector": "the detector's name",
    "digest": "SHA-256, hex",
    "ended": "revoked or ended; null while it lives",
    "ended_at": "when the boot was revoked or ended",
    "ends_at": "when the lease is over",
    "entries": "manifest lines that the checkpoint covers",
    "event_id": "the event's id, a UUID that rises with time",
    "evidence": "bytes that show it, hex",
    "executed": "base units filled as execution knows it; null if it does not",
    "expires_at": "from when on custody signs nothing under it",
    "fee_quote": "the commission in quote units: as it is for the quote, at the fill's price for the base; "
    "null where a third asset was taken (`commission` has it)",
    "fees": "commission so far in quote units: what was taken in the quote, and in the base at its fill's price",
    "filled": "base units filled, all fills added; null beyond what DECIMAL(38,18) holds",
    "filled_value": "quote units that the fills are worth, added, before commission",
    "fills": "quantity @ price of each fill, in their order",
    "flags": "bits of the signed statement: 1 closes the chain",
    "free": "units of the asset that can be used",
    "head": "SHA-256 of the last of these lines, hex",
    "intent_hash": "RFC 6962 leaf hash of the sealed message that held the intent, hex",
    "issued_at": "from when on the session counts",
    "kind": "the kind of its subject, such as order.intent",
    "last_seq": "its last sequence",
    "leaf": "the message's RFC 6962 leaf hash, hex",
    "limit": "the limit that the value met",
    "locked": "units of the asset that open orders hold",
    "log_index": "position in the audit's log over all streams, from 0: `log_index <= N` is the past as it was known",
    "maker": "whether our order had been resting",
    "messages": "how many messages it held",
    "method": "how the identity was proven",
    "missing_from": "the venue's first trade id of a gap; 0 for none",
    "missing_to": "the venue's last trade id of a gap; 0 for none",
    "name": "its name",
    "net": "profit in quote units after fees: realized - fees; `other_fees` come on top",
    "note": "the operator-signed note, as it was signed",
    "number": "which word on the component it is; the highest counts",
    "order_id": "the order's id everywhere: the id of the event by which the strategy asked for it (its intent)",
    "other_fees": "commission so far in third assets, each in its own units; in none of the other columns",
    "payload": "the sealed message, byte for byte",
    "permit_price": "the price that may be sent, in the venue's own words; empty for a market order",
    "permit_quantity": "the quantity that may be sent, in the venue's own words",
    "policies": "ids of the policies that decided",
    "policy_hash": "SHA-256 of policy and schema, hex",
    "pos": "position of the event in its message, from 0",
    "price": "quote units for one base unit; null for a market order",
    "qty": "base units",
    "realized": "gross profit of what was closed, in quote units, before commission",
    "reason": "why",
    "received": "when the broker stored the message",
    "refused_seq": "sequence of the message that was refused, in `stream`",
    "revoked": "whether it is revoked, or admitted again",
    "scope": "all, strategy-NAME or venue-NAME",
    "session_key": "the session's public key, hex",
    "severity": "the severity, as in the subject",
    "side": "buy or sell",
    "signed_value": "quote units that came in (sell, above zero) or went out (buy, below zero), before commission",
    "since": "since when; admitted again, certificates issued from then on count",
    "size": "bytes of the sealed message",
    "starts_at": "from when on the lease holds",
    "state": "submitting, accepted, rejected, unknown, void or closed: the newest",
    "statement_time": "when its publisher says that it sealed the message",
    "states": "every state in its order, with the venue's word and the code",
    "status": "the venue's own word, such as FILLED",
    "strategy": "the strategy's name",
    "stream": "MARKET, SIGNALS, ORDERS, SECURITY or GUARD",
    "stream_seq": "sequence of its message in its stream: `messages` holds the proof",
    "subject": "the subject on which it was published",
    "symbol": "the market, BASE/QUOTE",
    "text": "what is said about it, for people",
    "tif": "GTC, IOC or FOK",
    "time": "the venue's own time",
    "total_of": "the stream that the total is of",
    "trade_id": "the venue's id of the trade",
    "ts": "when its component stated it",
    "type": "the event's type and version, such as fill/1",
    "value": "price x qty in quote units; null for a market order, and beyond what DECIMAL(38,18) holds",
    "venue": "the venue's name in the deployment",
    "venue_order_id": "the venue's id of the order",
    "venues": "where the lease holds",
    "verdict": "permit, deny or cancel",
    # where a name means something else
    "alerts.code": "the detector's code",
    "alerts.value": "what was measured; its unit is in `text`",
    "checkpoints.rows": "rows that these lines name",
    "credentials.component": "whose session it is",
    "arming.component": "who may trade",
    "cancels.decision_id": "id of the decision on the cancellation",
    "cancels.denial_codes": "why the cancellation was denied; empty where it passed",
    "cancels.verdict": "cancel: passed on; deny; null while nobody answered",
    "decisions.decision_id": "the decision's own id",
    "events.code": "why the message has no effect",
    "events.kind": "the kind of its subject; null for what could not be opened",
    "events.status": "ok, late, unlisted or refused: what the message counts for",
    "events.symbol": "the market, BASE/QUOTE, as the subject says",
    "fills.order_id": "the order's id; null where no permit is known for the fill",
    "fills.price": "quote units for one base unit",
    "fills.value": "price x qty in quote units, before commission; null beyond what DECIMAL(38,18) holds",
    "intents.type": "limit or market",
    "messages.code": "why the message has no effect",
    "messages.status": "ok, late, unlisted or refused: what the message counts for",
    "order_events.decision_id": "id of the decision that it carries out",
    "order_events.state": "submitting, accepted, rejected, unknown, void or closed",
    "orders.fee_quote": "commission of all fills in quote units; null where a third asset was taken",
    "orders.log_index": "position in the audit's log of the first that is known of the order",
    "orders.price": "asked price in quote units for one base unit; null for a market order, or where nobody asked",
    "orders.qty": "asked base units; null where no strategy asked for this order",
    "orders.received": "when the broker stored the first that is known of the order",
    "orders.side": "buy or sell; null where no strategy asked for this order",
    "orders.type": "limit or market",
    "orders.value": "asked price x quantity in quote units",
    "positions.fills": "number of fills applied so far",
    "positions.qty": "base units that can be sold: commission taken in the base is not among them; below zero for short",
    "totals.digest": "SHA-256 over all its messages, with their times of storage, hex",
    "quotes.time": "the venue's own time",
    "signals.value": "what the strategy measured",
    "trades.price": "quote units for one base unit",
    "trades.trade_id": "the venue's id of the trade",
}


def meaning(view: str, column: str) -> str:
    """What a column of a view means.  Raises `KeyError` for one that nobody explained."""
    return COLUMNS.get(f"{view}.{column}") or COLUMNS[column]


def markdown(connection: duckdb.DuckDBPyConnection) -> str:
    """A table for each view: column, type, meaning.  `connection` has the views (`sandbox.connect`)."""
    parts = []
    for view, (what, _) in VIEWS.items():
        columns = connection.execute(f"DESCRIBE {view}").fetchall()
        rows = [f"| `{name}` | {kind} | {meaning(view, name)} |" for name, kind, *_ in columns]
        parts.append(
            "\n".join((f"### {view}\n\n{what[0].upper()}{what[1:]}.\n", "| Column | Type | |", "|---|---|---|", *rows))
        )
    return "\n\n".join(parts)
