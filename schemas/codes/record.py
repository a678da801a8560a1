"""Codes of the record: the archive, what its verification finds, SQL, traces, replay."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import ERROR, FINDING, NOTICE, Code

_TAMPERED: Final = (
    "The record was changed at the place that is named: keep it as evidence, restore that part from a copy, and "
    "find out who writes to the folder."
)
_DISK: Final = "Free disk space, and give the deployment's user the folder."
_SELECT: Final = "Correct the option as the line says."
_QUERY: Final = "Correct the query; `show tables` and `describe TABLE` say what there is."

CODES: Final = (
    Code(
        "ARCHIVE_EMPTY",
        ERROR,
        "The archive holds nothing; an emptied archive is never called clean.",
        "Give the right folder; if it is the right one, restore the archive from a copy.",
    ),
    Code(
        "ARCHIVE_LOCKED",
        ERROR,
        "Another process writes to the archive.",
        "Stop the other audit; there is one a deployment.",
    ),
    Code(
        "ARCHIVE_MISSING",
        ERROR,
        "There is no archive.",
        "Give the folder of a deployment that ran, or of an archive.",
    ),
    Code(
        "ARCHIVE_TRUST",
        ERROR,
        "The archive keeps another trust root than the deployment, or it cannot be written.",
        "Find out which of the two was exchanged.",
    ),
    Code(
        "ARCHIVE_UNREADABLE",
        ERROR,
        "A file of the archive cannot be read.",
        "Run `tallystick audit verify DIR`, which says what is wrong with it.",
    ),
    Code("ARCHIVE_UNUSABLE", ERROR, "The archive's folder cannot be used.", _DISK),
    Code("ROOT_MISSING", ERROR, "The operator root's public key is not there.", "Give it with `--root FILE`."),
    Code(
        "SEGMENT",
        ERROR,
        "A manifest line describes a file that cannot be: more messages than rows, or its sequences backwards.",
        _TAMPERED,
    ),
    Code("SEGMENT_NAME", ERROR, "A manifest line whose file name does not fit its sequences and level.", _TAMPERED),
    Code("SEGMENT_STREAM", ERROR, "A manifest line whose file name is of another stream.", _TAMPERED),
    Code("SEGMENT_SIZE", ERROR, "A file of the archive has another size than the manifest says.", _TAMPERED),
    Code("SEGMENT_WRITE", ERROR, "A file of the archive cannot be written.", _DISK),
    Code("MANIFEST_WRITE", ERROR, "The manifest cannot be written.", _DISK),
    Code(
        "MANIFEST_CUT",
        ERROR | FINDING,
        "The manifest is shorter than a checkpoint that audit sealed on the bus: its end was cut off.",
        _TAMPERED,
    ),
    Code(
        "MANIFEST_CARRY",
        ERROR | FINDING,
        "A part of the manifest begins with other files than the lines before it come to.",
        _TAMPERED,
    ),
    Code("MANIFEST_EMPTY", FINDING, "The manifest has no line, though files are there: it was emptied.", _TAMPERED),
    Code(
        "MANIFEST_EXTENT",
        ERROR | FINDING,
        "A line of the manifest does not go on where its streams and the log end, or overlaps another.",
        _TAMPERED,
    ),
    Code("MANIFEST_FILE", ERROR | FINDING, "The manifest names a file twice.", _TAMPERED),
    Code(
        "MANIFEST_LINE",
        ERROR | FINDING,
        "A line of the manifest does not parse, or does not re-encode to the same bytes.",
        _TAMPERED,
    ),
    Code(
        "MANIFEST_LINK",
        ERROR | FINDING,
        "A line of the manifest does not follow from the line before: edited, cut or reordered.",
        _TAMPERED,
    ),
    Code("MANIFEST_NUMBER", ERROR | FINDING, "A line of the manifest has the wrong number.", _TAMPERED),
    Code(
        "MANIFEST_REPLACES",
        ERROR | FINDING,
        "A line of the manifest replaces files by one that does not hold the same.",
        _TAMPERED,
    ),
    Code(
        "MANIFEST_REWRITTEN",
        ERROR | FINDING,
        "The manifest is not the one that audit sealed a checkpoint over, or changed while it was read.",
        _TAMPERED,
    ),
    Code(
        "BEYOND",
        FINDING,
        "A component had read a stream further than the record holds it: the stream's end is missing, or it lies.",
        _TAMPERED,
    ),
    Code(
        "NO_CHECKPOINT",
        FINDING,
        "Audit lived for a minute and none of the checkpoints that it seals every five seconds is there.",
        _TAMPERED,
    ),
    Code(
        "SILENT",
        FINDING,
        "A component lived, by what the authority or it itself sealed, and its heartbeats are not there.",
        _TAMPERED,
    ),
    Code(
        "TOTAL",
        FINDING,
        "A stream is not what audit sealed of it: a message, its place in the log or its time of storage was changed.",
        _TAMPERED,
    ),
    Code("EXPECT", ERROR, "What was given with `--expect` is no checkpoint.", _SELECT),
    Code("EXTRA_FILE", FINDING, "A file that the manifest does not name.", _TAMPERED),
    Code("FILE_EXTENT", FINDING, "A file holds other sequences or counts than the manifest says.", _TAMPERED),
    Code(
        "FILE_HASH",
        ERROR | FINDING,
        "A file has not the hash that the manifest names: it was changed or swapped.",
        _TAMPERED,
    ),
    Code(
        "FILE_KIND",
        ERROR | FINDING,
        "A FIFO, a device, a folder or a link in place of a file of the archive.",
        _TAMPERED,
    ),
    Code(
        "FILE_LAYOUT",
        ERROR | FINDING,
        "A Parquet file that the archive's writer did not make: it could mislead readers, or take all their memory.",
        _TAMPERED,
    ),
    Code(
        "CHECKPOINT_SEAL",
        ERROR,
        "The newest checkpoint of the archive does not verify: somebody else than audit wrote it.",
        _TAMPERED,
    ),
    Code(
        "FILE_INDEX",
        FINDING,
        "Statistics or a Bloom filter of a file are not those of its rows: queries would miss some of them.",
        _TAMPERED,
    ),
    Code("FILE_MISSING", ERROR | FINDING, "A file that the manifest names is not there.", _TAMPERED),
    Code("FILE_SCHEMA", FINDING, "A file whose columns are not the archive's.", _TAMPERED),
    Code(
        "FILE_SIZE",
        ERROR | FINDING,
        "A file has another size than the manifest names, or is larger than any of its kind.",
        _TAMPERED,
    ),
    Code("FILE_UNREADABLE", ERROR | FINDING, "A file that cannot be read, or is no readable Parquet file.", _TAMPERED),
    Code("LOG_GAP", FINDING, "Positions of the log that no message has: messages are missing.", _TAMPERED),
    Code("LOG_INDEX", FINDING, "A position of the log that is used twice or cannot be.", _TAMPERED),
    Code(
        "LOG_STATE",
        ERROR,
        "The audit's saved state cannot be used; it reads the archive instead.",
        "Nothing: it is a cache.",
    ),
    Code("ROW", FINDING, "A column holds something else than the sealed message says.", _TAMPERED),
    Code("ROWS", FINDING, "Rows of a message were added, dropped or swapped.", _TAMPERED),
    Code("SEAL", FINDING, "A message that is archived as good does not verify: it was changed or moved.", _TAMPERED),
    Code("SEQUENCE", FINDING, "A sequence does not follow the one before: lost, reordered or twice.", _TAMPERED),
    Code(
        "STATUS",
        FINDING,
        "A message is archived under another status than it has, such as refused to hide it.",
        _TAMPERED,
    ),
    Code("HOLE", NOTICE | FINDING, "Messages are missing in the middle of a component's chain.", _TAMPERED),
    Code(
        "LINK",
        NOTICE | FINDING,
        "A message names another one before it than the one that is stored: a fork by a stolen key.",
        "Revoke the component with `tallystick revoke`, and find out who else has its key.",
    ),
    Code(
        "AFTER_CLOSE",
        NOTICE | FINDING,
        "A component's chain goes on after its closing statement.",
        "Revoke the component with `tallystick revoke`: its process had ended, so somebody else has its key.",
    ),
    Code(
        "DROPPED",
        NOTICE | FINDING,
        "A component states that something is stored that the record does not hold: a tail was dropped.",
        _TAMPERED,
    ),
    Code(
        "LATE",
        NOTICE | FINDING,
        "A message of a boot after its revocation or end; kept, without effect.",
        "None is needed; find out who still has that session.",
    ),
    Code(
        "UNLISTED",
        NOTICE | FINDING,
        "A message of a session that the authority never issued: a stolen role key; kept, without effect.",
        "Make new keys for that component, and find out who has the old ones.",
    ),
    Code(
        "TORN",
        NOTICE,
        "A boot ended in the middle of a flush, and some of its messages never reached the broker.",
        "Nothing: nobody acted on them.",
    ),
    Code(
        "HEADS",
        NOTICE | FINDING,
        "A heartbeat states what cannot be: chains that its component cannot have. It has no effect.",
        "Look at that component's code: its own runtime never says so.",
    ),
    Code(
        "HELD_BACK",
        NOTICE,
        "Audit waits for what the broker holds of a stream and does not bring; nothing is lost, and nothing is archived meanwhile.",
        "See whether the broker and its disk keep up; if they do, the broker withholds messages.",
    ),
    Code(
        "SANDBOX",
        ERROR,
        "The process that answers queries could not be shut in, or broke.",
        "Run it on a kernel with Landlock; report it if it happens again.",
    ),
    Code("SQL", ERROR, "The query failed.", _QUERY),
    Code("SQL_ENCODING", ERROR, "The query is not UTF-8.", _QUERY),
    Code(
        "EXPORT", ERROR, "There is no such view, or the folder to export to is there already.", "The line lists them."
    ),
    Code("SQL_LIMITS", ERROR, "The query took more time or memory than it may.", "Narrow it, or raise `--seconds`."),
    Code("SQL_MISSING", ERROR, "Neither a query nor a prepared one was given, or both.", "Give one of the two."),
    Code("SQL_NOT_A_QUERY", ERROR, "The statement is no query.", "Ask with SELECT; the archive is never changed."),
    Code("SQL_QUERY", ERROR, "There is no prepared query of that name.", "Use one of those that the line lists."),
    Code("SQL_STATEMENTS", ERROR, "Several statements at once.", "Ask one query at a time."),
    Code("SQL_SYNTAX", ERROR, "The query does not parse.", _QUERY),
    Code("SQL_TABLE", ERROR, "The query names a table or file that is not the archive's.", _QUERY),
    Code("SQL_TABLE_FUNCTION", ERROR, "The query calls a table function that is not available.", _QUERY),
    Code("SQL_TYPE", ERROR, "A result holds times within lists or structs.", "Cast them to VARCHAR in the query."),
    Code("ORDER_AMBIGUOUS", ERROR, "The name stands for several orders.", "Trace one of those that the line lists."),
    Code(
        "ORDER_NOT_RECORDED",
        ERROR,
        "The archive holds no order of that name.",
        'List them with `tallystick audit sql DIR "select order_id from orders"`.',
    ),
    Code(
        "NOT_A_ZONE",
        ERROR,
        "The folder given with `--into` is a deployment that may be live.",
        "Name a new folder, or one that `--into` made before.",
    ),
    Code(
        "REPLAY_ENDED",
        ERROR,
        "The replay's component ended before it had played everything.",
        "Look at the log that the line names, in the zone's folder.",
    ),
    Code(
        "REPLAY_NOTHING",
        ERROR,
        "The replay's component was started without anything to play.",
        "Use `tallystick replay DIR --into ZONE`.",
    ),
    Code("REPLAY_SEQUENCE", ERROR, "No range of sequences, or one over several streams.", _SELECT),
    Code("REPLAY_STREAM", ERROR, "A stream that there is not, or of which nothing was selected.", _SELECT),
    Code("REPLAY_SUBJECT", ERROR, "A pattern that covers no kind of subject.", _SELECT),
    Code("REPLAY_TIME", ERROR, "No time, or a range of times that holds nothing.", _SELECT),
)
