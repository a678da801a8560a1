"""Codes of what is sealed: events, subjects, statements, chains, Merkle trees, notes, decimals and ids."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, ERROR, FINDING, REFUSAL, Code

_FORGED: Final = (
    "Look up who published it (the dead letter names its subject): a component of ours that does this is broken, "
    "anybody else is an intruder."
)
_CALLER: Final = "Correct the value in the strategy, observer or file that the line names."

CODES: Final = (
    Code("PAYLOAD", DEAD, "The bytes are no sealed message of version 1.", _FORGED),
    Code("PAYLOAD_CANONICAL", DEAD, "A sealed message that does not re-encode to the same bytes.", _FORGED),
    Code(
        "PAYLOAD_SIZE",
        ERROR | DEAD,
        "A sealed message longer than the limit.",
        "Publish fewer events at once; as a dead letter, look up who published it.",
    ),
    Code(
        "PAYLOAD_VERSION",
        DEAD,
        "A sealed message of a version that this verifier does not read.",
        "Run the same release everywhere.",
    ),
    Code("STATEMENT", DEAD, "The signed statement of a message does not parse, or holds values out of range.", _FORGED),
    Code("STATEMENT_CANONICAL", DEAD, "A statement that does not re-encode to the same bytes.", _FORGED),
    Code("STATEMENT_FLAGS", DEAD, "A statement with flags that this version does not know.", _FORGED),
    Code(
        "STATEMENT_STREAM",
        DEAD,
        "A statement for another stream than the one that it was read from, or for none that there is.",
        _FORGED,
    ),
    Code(
        "STATEMENT_PREV",
        DEAD,
        "Only the first statement of a chain follows nothing, and this one disagrees.",
        _FORGED,
    ),
    Code(
        "STATEMENT_CREDENTIAL",
        DEAD,
        "Statement and credential name different components, boots or sessions.",
        _FORGED,
    ),
    Code("SIGNATURE", DEAD, "The statement is not signed by the session key that its credential names.", _FORGED),
    Code(
        "MERKLE_ROOT",
        DEAD,
        "Subject and events are not what was signed at this position: one of them was changed or moved.",
        _FORGED,
    ),
    Code("MERKLE_INDEX", DEAD, "A message claims a position that its flush does not have.", _FORGED),
    Code("MERKLE_PATH", DEAD, "A proof of inclusion is too long, too short, or holds no hashes.", _FORGED),
    Code(
        "DEPLOYMENT",
        DEAD,
        "A message sealed for another deployment.",
        "Connect only components of one deployment to its broker; what was replayed elsewhere has no effect here.",
    ),
    Code(
        "CREDENTIAL_EXPIRED",
        DEAD,
        "A statement dated outside its credential's lifetime: a stolen session after its end, or a wrong clock.",
        "Set the clocks of both machines; if they agree, revoke the component with `tallystick revoke`.",
    ),
    Code("STREAM", DEAD, "A subject that does not belong to the stream it was read from.", _FORGED),
    Code(
        "STALE",
        DEAD,
        "A message stated longer ago than its kind may be; it is history and commands nothing.",
        "Nothing, after a start; if it goes on, the clocks differ or the publisher is held up.",
    ),
    Code(
        "FUTURE",
        DEAD,
        "A message stated ahead of the receiver's clock by more than clocks differ.",
        "Set the clocks of both machines (NTP).",
    ),
    Code(
        "REPLAY",
        DEAD | FINDING,
        "A message that was read before: somebody sent it again.",
        "None is needed, it had no effect; find out who can publish on that subject.",
    ),
    Code(
        "FORK",
        DEAD | FINDING,
        "Two statements with one number: a stolen session key, or one boot that runs twice.",
        "Revoke the component with `tallystick revoke`, and find out who else has its key.",
    ),
    Code(
        "CLOSED",
        DEAD,
        "A message after the closing statement of its boot.",
        "Revoke the component with `tallystick revoke`: its process had ended, so somebody else has its key.",
    ),
    Code(
        "CHAIN_CLOSED",
        ERROR,
        "This process closed its chain and tried to seal more.",
        "Start the component again; if it happens again it is a defect to report.",
    ),
    Code("FLUSH_SIZE", ERROR, "A flush holds no message, or more than the limit.", "Publish fewer events at once."),
    Code("FLUSH_STREAM", ERROR, "A message was put into the flush of another stream.", "It is a defect to report."),
    Code(
        "SESSION_KEY",
        ERROR,
        "The key that signs is not the session key that the credential names.",
        "Start the component again, so that it gets a session of its own.",
    ),
    Code("EVENTS", DEAD, "The events of a message do not parse as events of its subject's kind.", _FORGED),
    Code("EVENTS_CANONICAL", DEAD, "The events of a message do not re-encode to the same bytes.", _FORGED),
    Code("EVENTS_EMPTY", DEAD, "A message without events that is no closing statement.", _FORGED),
    Code(
        "EVENTS_SIZE",
        ERROR | DEAD,
        "More events, or more bytes of them, than one message may hold.",
        "Publish fewer events at once; as a dead letter, look up who published it.",
    ),
    Code(
        "EVENT_TYPE",
        ERROR | DEAD,
        "An event of a type that may not stand on its subject.",
        "Publish it on a subject of its own kind (docs/wire-format.md).",
    ),
    Code("EVENT_ID", ERROR | DEAD, "An event id that has not 16 bytes.", _CALLER),
    Code("EVENT_TS", ERROR | DEAD, "An event whose time is below zero.", _CALLER),
    Code(
        "EVENT_CAUSES",
        ERROR | DEAD,
        "An event that names more causes than the limit, or one that is no event id.",
        _CALLER,
    ),
    Code("ID_ENTROPY", ERROR, "Too little entropy was given for a new id.", "It is a defect to report."),
    Code(
        "ID_TEXT",
        ERROR,
        "The text is no event id.",
        "Give a UUID of 8-4-4-4-12 hex digits, as `tallystick audit sql` prints it.",
    ),
    Code("DECIMAL", ERROR | DEAD, "A number that does not fit 38 digits with 18 places, or is none.", _CALLER),
    Code("DECIMAL_SIGN", ERROR | DEAD, "A number that must be above zero (or not below it) and is not.", _CALLER),
    Code(
        "MARKET_RANGE",
        ERROR | DEAD,
        "A price or quantity that no market has: above 10^12, 10^16, or 10^18 together.",
        "Look at the feed: it counts in other units, or somebody makes it up.",
    ),
    Code("LENGTH", DEAD, "A field of fixed length (key, hash, boot) has another one.", _FORGED),
    Code("DEAD_PAYLOAD", DEAD, "A dead letter that quotes more of a message than its limit.", _FORGED),
    Code("DECISION", DEAD, "A decision whose verdict disagrees with its permit or its denials.", _FORGED),
    Code(
        "INTENT_PRICE",
        ERROR | DEAD,
        "A limit order without a price, or a market order with one.",
        "Give a price with limit orders alone.",
    ),
    Code("INTENT_TIF", ERROR, "A time in force other than GTC, IOC or FOK.", "Give one of the three."),
    Code("NOT_EXACT", ERROR, "A strategy gave a float, which is not exact.", "Use Decimal or text."),
    Code("ORDER_AMOUNT", REFUSAL | DEAD, "An amount of a permitted order is no plain decimal.", _FORGED),
    Code("POSITION_FEES", DEAD, "A position whose fees name an asset twice, or not by name.", _FORGED),
    Code(
        "NAME",
        ERROR,
        "A name that is not 1 to 48 of a-z, 0-9 and '-', or starts or ends with '-'.",
        "Choose another name.",
    ),
    Code(
        "SYMBOL",
        ERROR,
        "A symbol that is empty, too long for a subject, or no Unicode text.",
        "Correct the symbol in `deployment.toml`.",
    ),
    Code("SYMBOL_TOKEN", DEAD, "A part of a subject that is not the one spelling of a symbol.", _FORGED),
    Code("SUBJECT", ERROR | DEAD, "The text is no subject of this system.", "Use a subject of docs/wire-format.md."),
    Code(
        "SUBJECT_KIND",
        ERROR | DEAD,
        "A subject of a kind that there is not.",
        "Use one of the kinds that the line lists.",
    ),
    Code(
        "SUBJECT_FIELDS",
        ERROR,
        "A subject was made with other fields than its kind has.",
        "Give exactly the fields that the line lists.",
    ),
    Code("SUBJECT_LENGTH", ERROR | DEAD, "A subject longer than the limit.", "Use shorter names and symbols."),
    Code(
        "SEVERITY",
        ERROR | DEAD,
        "A severity that is none of those an alert can have.",
        "Use one of the severities that the line lists.",
    ),
    Code(
        "NOTE",
        ERROR,
        "A signed note without signatures, or with too many.",
        "Restore the file from a backup, and find out who changed it.",
    ),
    Code(
        "NOTE_SIGNATURE",
        ERROR | DEAD,
        "A signature on a note that is none, or does not match the text: the text was changed.",
        "Restore the file from a backup, and find out who changed it; as a dead letter, somebody tried to forge "
        "an operator's word.",
    ),
    Code(
        "NOTE_SIZE",
        ERROR | DEAD,
        "A signed note longer than the limit.",
        "Restore the file from a backup, and find out who changed it.",
    ),
    Code(
        "NOTE_TEXT",
        ERROR,
        "The text of a note has control characters, or no newline at its end.",
        "Restore the file from a backup, and find out who changed it.",
    ),
    Code(
        "NOTE_UNSIGNED",
        ERROR | DEAD,
        "A note that none of the keys signed which may sign it.",
        "Sign with the operator's token of this deployment; a note that somebody else signed is an attack.",
    ),
    Code(
        "DOCUMENT",
        ERROR | DEAD,
        "A signed note whose text is not the document that was expected.",
        "Give the right file; restore it from a backup if it was changed.",
    ),
    Code(
        "DOCUMENT_CANONICAL",
        ERROR | DEAD,
        "A signed document that does not re-encode to the same bytes.",
        "Make it again with `tallystick`; do not edit it.",
    ),
    Code(
        "FRAME",
        REFUSAL,
        "Bytes on custody's socket that are no message of the signing protocol.",
        "Find out which program writes to the socket: it is not execution, or not of this release.",
    ),
    Code(
        "FRAME_CANONICAL",
        REFUSAL,
        "A message of the signing protocol that does not re-encode to the same bytes.",
        "Find out which program writes to the socket: it is not execution, or not of this release.",
    ),
    Code(
        "FRAME_SIZE",
        REFUSAL,
        "A message of the signing protocol that is empty or longer than the limit.",
        "Find out which program writes to the socket: it is not execution, or not of this release.",
    ),
)
