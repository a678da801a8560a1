"""Codes of a deployment: its folder and configuration, ceremony, admission, supervisor, user code, commands."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, ERROR, NOTICE, Code

_TOML: Final = "The line names key and file: correct it in `deployment.toml`."
_DEFECT: Final = "It is a defect to report."

CODES: Final = (
    Code(
        "COMPROMISE_KEY",
        ERROR,
        "No API key of the venue's that is in use, or no name of one.",
        "`tallystick keys list DIR` shows their names; [Incidents](incidents.md) says what answers for other keys.",
    ),
    Code(
        "COMPROMISE_OPEN",
        ERROR,
        "Whether orders are open is not known.",
        "Look at the venue's own page, and cancel there what is open.",
    ),
    Code(
        "COMPROMISE_RUNNING",
        ERROR,
        "A component that somebody started alone still runs, with the sessions that it has.",
        "End it where it was started, and call `tallystick compromise` again.",
    ),
    Code(
        "COMPROMISE_UNPROVEN",
        ERROR,
        "It is not shown that the old certificate is dead.",
        "Stop the deployment, `tallystick admit DIR --new-ca`, start again.",
    ),
    Code(
        "EVIDENCE",
        ERROR,
        "An evidence file cannot be read.",
        "Restore it from a backup; the notes stand in the archive.",
    ),
    Code("INCIDENT", ERROR, "What was given is no step of an incident.", "It is a defect to report."),
    Code("INCIDENT_SCOPE", ERROR, "A step of another deployment's incident.", "Name the deployment that it is for."),
    Code(
        "DEPLOYMENT_FILE",
        ERROR,
        "`deployment.toml` is missing, cannot be read, has an unknown key or a wrong value, or others may write to it.",
        "The line names key and file; exact numbers are text.",
    ),
    Code("CAPS", ERROR, "A cap for another account than the venue's.", _TOML),
    Code(
        "ENV",
        ERROR,
        "`env` of a strategy or an observer names a variable that is not set where `tallystick up` runs, or no variable.",
        "Set it there, or take it out of `deployment.toml`.",
    ),
    Code("FLOAT", ERROR, "A float, which is not exact.", "Write the number as text."),
    Code("INSTRUMENTS", ERROR, "No instrument, one at another venue, or one that is named but not there.", _TOML),
    Code("PORT", ERROR, "A port that is not 0 to 65535.", _TOML),
    Code("TWICE", ERROR, "A name that must be unique stands twice.", _TOML),
    Code(
        "STRATEGY",
        ERROR,
        "`deployment.toml` has no such strategy.",
        "Add it to `[[strategies]]` and run `tallystick admit DIR`.",
    ),
    Code(
        "STRATEGY_PARAM",
        ERROR,
        "A strategy has no such parameter, or its value is of another kind.",
        "Correct the strategy's parameters in `deployment.toml`.",
    ),
    Code(
        "STRATEGY_HALTED",
        NOTICE,
        "A strategy's code raised; it sends nothing more and its orders are cancelled.",
        "The text names the error: correct the code, then start the strategy again.",
    ),
    Code(
        "OBSERVER",
        ERROR,
        "`deployment.toml` has no such observer.",
        "Add it to `[[observers]]` and run `tallystick admit DIR`.",
    ),
    Code(
        "USER_CLASS",
        ERROR,
        "A file holds no class, or several, of the kind that is wanted.",
        "Name it as FILE:CLASS.",
    ),
    Code(
        "USER_CODE",
        ERROR,
        "A file of yours does not compile, or raises as it is loaded.",
        "The line names file and line number.",
    ),
    Code(
        "USER_FILE",
        ERROR,
        "A file of yours is not there, or is no Python.",
        "Give a path that ends in .py, from the deployment's folder.",
    ),
    Code(
        "NOT_ADMITTED",
        ERROR,
        "A strategy or observer that the operator has not signed.",
        "`tallystick admit DIR`, while it is down.",
    ),
    Code(
        "ADMIT",
        ERROR,
        "Another trust root is in force than the one that was just signed.",
        "Run `tallystick admit DIR` again; one at a time.",
    ),
    Code(
        "INIT_EXISTS",
        ERROR,
        "The folder for a new deployment holds something.",
        "Choose another folder, or empty it yourself.",
    ),
    Code(
        "INIT_PATH",
        ERROR,
        "The folder for a new deployment cannot be used, or its path is too long for Unix sockets.",
        "Choose another folder.",
    ),
    Code("INIT_POLICY", ERROR, "The installation has no policies to begin with.", "Install the package again."),
    Code(
        "RUNNING",
        ERROR,
        "The deployment is up already, or a demo, an `init` or a component runs where this one would.",
        "Stop it first: the line names its process.",
    ),
    Code(
        "START_FAILED",
        ERROR,
        "A process ended while the deployment started.",
        "The line ends with its last words; all else was stopped.",
    ),
    Code(
        "START_TIMEOUT",
        ERROR,
        "Not all processes were ready in time.",
        "Look at the logs of those that the line names.",
    ),
    Code(
        "SUPERVISOR",
        ERROR,
        "The supervisor itself failed, so nothing is watched any more.",
        "Stop what still runs and start again with `tallystick up DIR`; the log that the line names says why.",
    ),
    Code(
        "PROCESS",
        ERROR,
        "The supervisor has no such process running.",
        "Look at its log; it is started again unless it ended with 2.",
    ),
    Code("COMPONENT_CLASS", ERROR, "A component's package does not define what is to run.", _DEFECT),
    Code(
        "LOG_FILE",
        ERROR,
        "A log file cannot be written.",
        "Free disk space, and give the deployment's user the folder.",
    ),
    Code("SYSTEM", ERROR, "The machine refused: no rights, no space.", "The line names the file."),
    Code(
        "UNEXPECTED",
        ERROR,
        "A defect of Tallystick itself.",
        "Report it with the trace that the line points at, or that `tallystick --debug COMMAND …` shows.",
    ),
    Code(
        "ARGUMENT_ENCODING", ERROR, "An argument is not UTF-8.", "Give it as text; rename a file or folder that is not."
    ),
    Code("NOT_UP", ERROR, "Nothing of the deployment is running.", "Start it with `tallystick up DIR`."),
    Code(
        "ARM_CAP",
        ERROR,
        "A cap of a lease that is no `ASSET=ORDER/HOUR`, or is more than the operator signed in the trust root.",
        "`--cap ETH=2/20`; more needs `[[caps]]` in `deployment.toml` and `tallystick admit DIR`.",
    ),
    Code("ARM_HOURS", ERROR, "A lease of no time, or of more than 12 hours.", "`--hours 8`."),
    Code(
        "OPTION",
        ERROR,
        "An option's value is not one of those that it takes, or two options do not go together.",
        "Use what the line lists.",
    ),
    Code(
        "DEMO_SHORT",
        ERROR,
        "The recording has too few trades of one instrument for the demo's story.",
        "Give a longer one, or play it in a deployment of your own.",
    ),
    Code("DEMO_FOLDER", ERROR, "The folder is not a demo's, so it is not emptied.", "Choose another with `--dir`."),
    Code("INTRUDER", ERROR, "The demo's intruder acted before it was inside.", _DEFECT),
    Code(
        "CODE_UNKNOWN",
        ERROR,
        "`explain` was asked about a code that there is not.",
        "Use one of those that the line suggests.",
    ),
    Code(
        "DOCS",
        ERROR,
        "A document is missing, or has no place for a generated table.",
        "Run the command from a checkout, or name its `docs` folder.",
    ),
    Code(
        "CORRECTION",
        ERROR | DEAD,
        "A correction that says too much, too little, or no plain number.",
        "Look at the numbers.",
    ),
    Code(
        "CORRECTION_SCOPE",
        ERROR | DEAD,
        "An operator's correction on the subject of another strategy or instrument, or of another deployment.",
        "Find out who published it: the operator's notes are somewhere that they should not be.",
    ),
    Code(
        "CORRECTION_UNSTORED",
        ERROR,
        "The breaker took a correction, and the broker has not confirmed it.",
        "Look whether it is on record (`tallystick audit sql`) before you sign another one.",
    ),
)
