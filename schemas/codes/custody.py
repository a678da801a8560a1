"""Codes of custody and execution: permits, signing, and what becomes of an order."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import ERROR, NOTICE, ORDER, REFUSAL, Code

_CUSTODY: Final = "None is needed, nothing was signed; a permit like that is forged or a defect: find out which."
_LIBRARY: Final = "Nothing was signed; install the pinned ccxt again, since what it does is not what was tested."

CODES: Final = (
    Code(
        "EXCHANGE_UNSIGNABLE",
        ERROR,
        "An exchange that cannot be signed with a key in a token, or takes no signature of that kind.",
        "The line says why; [Exchanges](exchanges.md) lists what can be signed.",
    ),
    Code("EXCHANGE_API", ERROR, "ccxt has no such class for the exchange.", "Use another of sync, async and pro."),
    Code(
        "SECRET_GIVEN",
        ERROR,
        "A secret stands in an exchange's configuration.",
        "Import it into the token, and leave it out.",
    ),
    Code(
        "SECRET_SENT",
        ERROR,
        "The exchange library would have sent the secret itself; nothing was sent.",
        "Use another kind of key, or another exchange; report it.",
    ),
    Code("PERMIT_ISSUER", REFUSAL, "Custody was shown something that is no decision of the gateway.", _CUSTODY),
    Code(
        "NOT_A_PERMIT",
        REFUSAL,
        "The decision that custody was shown is not in the message, or permits nothing.",
        _CUSTODY,
    ),
    Code(
        "PERMIT_AUDIENCE",
        REFUSAL,
        "The permit is for another boot of custody, mostly the one before a restart.",
        "Nothing: the gateway permits for the new boot once it is listed.",
    ),
    Code(
        "PERMIT_EXPIRED",
        REFUSAL | ORDER,
        "The permit was over before the order was signed or sent.",
        "Nothing, if seldom; else look at what holds up execution or custody, and at the clocks.",
    ),
    Code(
        "LEASE_CAP",
        REFUSAL,
        "An order beyond the caps of the lease that arms execution now, or in an asset that the lease does not name.",
        "Arm again with the caps that are wanted, at most those of the trust root.",
    ),
    Code("PERMIT_LIFETIME", REFUSAL, "A permit that lives longer than any may.", _CUSTODY),
    Code(
        "PERMIT_USED",
        REFUSAL,
        "The permit, or an order with its client order id, was signed before.",
        "None is needed, it is signed once; find out who asked twice.",
    ),
    Code(
        "PERMITS_FULL",
        REFUSAL,
        "More permits are in use than custody remembers; it signs none until some expire.",
        "Find out what sends so many orders.",
    ),
    Code(
        "TRUST_ROOT_DIFFERS",
        REFUSAL,
        "The gateway decided by another signed document of limits, caps and house rules than custody has.",
        "Start gateway and custody again after `tallystick admit`, so that both have the same trust root.",
    ),
    Code(
        "TRUST_ROOT_NEWER",
        ERROR | NOTICE | REFUSAL,
        "A newer trust root than ours was in force already: an old one was put back, or others were started before us.",
        "Put back the newest `trust/` of the folder, or sign anew with `tallystick admit DIR`; then start again.",
    ),
    Code(
        "TRUST_ROOT_OLDER",
        NOTICE,
        "Another component decides by an older trust root than ours.",
        "Start that component again; where it still says so, look at its folder's `trust/`.",
    ),
    Code(
        "INTENT_MISSING",
        REFUSAL | ORDER,
        "Nobody asked for the order that was permitted: no such intent was read, or it is not in its message.",
        "A stolen or defective gateway: trip the breaker with `tallystick kill`, and look at the decision.",
    ),
    Code("INTENT_SUBJECT", REFUSAL | ORDER, "The intent is another strategy's, or for another instrument.", _CUSTODY),
    Code("INTENT_HASH", REFUSAL | ORDER, "The gateway decided on another message than the one shown.", _CUSTODY),
    Code(
        "INTENT_DIFFERS",
        REFUSAL | ORDER,
        "The permit is for another order than the strategy asked for.",
        "A stolen or defective gateway: trip the breaker with `tallystick kill`, and compare decision and intent.",
    ),
    Code(
        "PERMIT_UNASKED",
        NOTICE,
        "Execution read a permit for an order that no admitted strategy asked for; it is void.",
        "A stolen or defective gateway: trip the breaker with `tallystick kill`, and look at the decision.",
    ),
    Code("FRAME_SIGNER", REFUSAL, "Another component than execution asked custody to sign an order.", _CUSTODY),
    Code(
        "FRAME_SIGNATURE",
        REFUSAL,
        "A request for an order that the session it names did not sign.",
        "Find out which process connected to custody's socket: it held no session of execution.",
    ),
    Code("VENUE_ACCOUNT", REFUSAL, "The permit names another account than the trust root's at this venue.", _CUSTODY),
    Code(
        "INSTRUMENT_HASH",
        REFUSAL,
        "The permit was given under another record of the instrument than the operator's.",
        "Start gateway and custody again after `tallystick admit`, so that both have the same trust root.",
    ),
    Code(
        "CAP_EXCEEDED",
        REFUSAL,
        "The order, or the orders of an hour, exceed the operator's cap.",
        "Wait for the hour to pass, or let the operator sign a higher cap with `tallystick admit DIR`.",
    ),
    Code(
        "CAP_MISSING",
        REFUSAL,
        "The operator signed no cap for this asset and account; an order needs one for its base and one for its quote.",
        "Add it to `[[caps]]` and run `tallystick admit DIR`.",
    ),
    Code(
        "FIELD_MISMATCH",
        REFUSAL,
        "A field of the request is not what the permit or the instrument's record says.",
        _CUSTODY,
    ),
    Code("ORDER_TYPE", REFUSAL, "An order that is neither a limit order nor a plain market order.", _CUSTODY),
    Code("CLIENT_ORDER_ID", REFUSAL, "A client order id that is not 8 to 36 of the letters allowed.", _CUSTODY),
    Code(
        "ORDER_ID_NOT_OURS",
        REFUSAL,
        "Custody was asked to cancel an order, or about one, whose id no order of ours can have.",
        "Whoever asked holds execution: run `tallystick kill DIR`, and find out how it got there.",
    ),
    Code(
        "INSTRUMENT",
        ERROR,
        "An instrument's record holds values that cannot be used.",
        "Correct `[[instruments]]` and run `tallystick admit DIR`.",
    ),
    Code(
        "ENDPOINT",
        REFUSAL | ORDER,
        "A request to another address or another operation of the venue than the one allowed.",
        _LIBRARY,
    ),
    Code(
        "EXCHANGE_LIBRARY",
        REFUSAL,
        "The exchange library could not build the request.",
        "The text holds its words; check the instrument's record against the venue's.",
    ),
    Code(
        "SIGNATURE_KIND",
        REFUSAL,
        "The exchange library asks for another signature than Ed25519 with the token's key.",
        _LIBRARY,
    ),
    Code("SECRET_USED", REFUSAL, "The exchange library tried to read or to send the secret.", _LIBRARY),
    Code(
        "SIGNED",
        NOTICE,
        "How many requests custody has signed, with the head of its journal.",
        "Nothing: compare it with the orders when in doubt.",
    ),
    Code(
        "ORDER_REFUSED",
        NOTICE,
        "Custody refused to sign orders; the text counts the codes, and says who asked for what.",
        "Look up those codes; all that was asked stands in `DIR/state/custody/refused-….jsonl`.",
    ),
    Code(
        "SIGNING_REFUSED",
        NOTICE,
        "Custody refused requests other than for orders, frames or connections; the text counts the codes, and says whose.",
        "Look up those codes; who asks for such things holds execution, or is another program at custody's socket.",
    ),
    Code(
        "PEER",
        NOTICE,
        "Somebody who may not, or too many, connected to custody's socket.",
        "Find out which process it was: the text names its user and pid.",
    ),
    Code(
        "SOCKET",
        ERROR,
        "Custody cannot listen on its socket.",
        "Give the deployment's user the folder; choose a shorter path.",
    ),
    Code(
        "JOURNAL",
        ERROR | REFUSAL,
        "Custody cannot read or write its journal, so it signs nothing.",
        "Free disk space, and give the deployment's user the folder that the line names.",
    ),
    Code(
        "JOURNAL_CHAIN",
        ERROR,
        "A line of custody's journal does not follow the one before: somebody changed it.",
        "Keep it as evidence and move it away to start.",
    ),
    Code(
        "CUSTODY",
        ORDER,
        "Custody answered with something else than was asked.",
        "Start custody and execution again, of the same release.",
    ),
    Code(
        "CUSTODY_AWAY",
        ORDER,
        "Custody cannot be reached, so the order was not signed.",
        "Start custody if it is down; look at its log if it is up.",
    ),
    Code(
        "PERMIT_REPEATED",
        NOTICE,
        "A second permit for an order that execution has.",
        "Find out who permitted it again: the gateway permits once.",
    ),
    Code(
        "CLIENT_ORDER_ID_REUSED",
        ORDER | NOTICE,
        "One client order id is permitted for two intents; the second is void.",
        _CUSTODY,
    ),
    Code(
        "CORRECTED",
        ORDER,
        "The operator said how the order ended.",
        "Nothing: the record holds the operator's note, and why.",
    ),
    Code(
        "ORDER_WITHOUT_PERMIT",
        NOTICE,
        "The record holds events of an order that no decision permits; they are without effect.",
        "Run `tallystick audit verify DIR`: a decision was lost, or somebody traded without one.",
    ),
    Code(
        "ORDER_NOT_OURS",
        NOTICE,
        "An order is open at the venue that is none of ours.",
        "Look into the account: somebody else has its API key, or traded by hand.",
    ),
    Code(
        "HISTORY",
        ORDER,
        "What permits the order was stored before this process had read what came before it; it is not sent.",
        "Nothing: the strategy may send a new intent.",
    ),
    Code(
        "RECOVERED",
        ORDER,
        "Execution restarted while the order was being sent; the venue is asked.",
        "Nothing: the next event says what became of it.",
    ),
    Code("CANCELLED", ORDER, "The order was cancelled before it was sent.", "Nothing."),
    Code(
        "SIGNATURE_STALE",
        ORDER,
        "The signed request was not durable in time, so it was not sent.",
        "Look at the broker's disk; the strategy may send a new intent.",
    ),
    Code(
        "NOT_FOUND",
        ORDER,
        "The venue answered a new order with: not found; it is asked again.",
        "Nothing: the next event says what became of it.",
    ),
    Code(
        "NOT_AT_VENUE",
        ORDER,
        "The venue never took the order and cannot any more.",
        "Nothing: the strategy may send a new intent.",
    ),
    Code(
        "ORDER_VANISHED",
        ORDER | NOTICE,
        "The venue knew the order and does not any more.",
        "Compare with the venue's own history, and correct the position by hand if it filled.",
    ),
)
