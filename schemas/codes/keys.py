"""Codes of keys and secrets: the keystore, PINs, tokens and their module, TLS keys."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import ERROR, Code

_RESTORE: Final = "Restore the file from a backup, and find out who changed it."
_INIT: Final = "Restore the deployment's folder from a backup; `tallystick init` makes a new one."

CODES: Final = (
    Code("KEYSTORE_DAMAGED", ERROR, "The keystore is none, or its checksum is wrong.", _RESTORE),
    Code("KEYSTORE_EXISTS", ERROR, "There is a keystore already.", "Choose another folder."),
    Code("KEYSTORE_MISSING", ERROR, "The keystore cannot be read.", _INIT),
    Code(
        "KEYSTORE_MODE",
        ERROR,
        "Others may read the keystore.",
        "Set its mode to 0600 as the line says, and find out who read it.",
    ),
    Code(
        "KEYSTORE_NAME",
        ERROR,
        "The keystore holds no secret of that name.",
        "Restore it from a backup; for an API key: `tallystick api-key DIR COMPONENT --set`.",
    ),
    Code(
        "KEYSTORE_PIN",
        ERROR,
        "The master PIN is wrong.",
        "Give the right one; there is no way around it, the PIN opens everything.",
    ),
    Code("KEYSTORE_TAMPERED", ERROR, "The keystore was changed: its content fails authentication.", _RESTORE),
    Code(
        "PIN_INPUT",
        ERROR,
        "A PIN could not be read, is too short or too long, or was typed differently twice.",
        "Type it again, or pass it with `--pin-fd`.",
    ),
    Code(
        "SECRETS",
        ERROR,
        "The process was not given a secret that it needs.",
        "Pass `--secrets-fd` or the master PIN; restore the keystore if it lacks the secret.",
    ),
    Code(
        "SECRETS_FD",
        ERROR,
        "The descriptor holds no secrets.",
        "Pass a descriptor that holds them and was not read before.",
    ),
    Code(
        "API_KEY",
        ERROR,
        "An API key id that is not letters and digits.",
        "Copy the id, not the key, from the venue's page.",
    ),
    Code(
        "OPERATOR_TOKEN",
        ERROR,
        "The operator's token cannot be read.",
        "Bring back `hsm/operator`, or plug in the token; if it is lost, make a new deployment.",
    ),
    Code("HSM_BUSY", ERROR, "The process has another token open.", "It is a defect to report."),
    Code("HSM_CLOSED", ERROR, "The token was closed.", "Start the process again."),
    Code(
        "HSM_DUPLICATE",
        ERROR,
        "The token has a key of that name already.",
        "Use a new token, or the key that is there.",
    ),
    Code("HSM_EXTRACTABLE", ERROR, "The key can leave its token or has left it.", "Make a new key."),
    Code("HSM_FAILED", ERROR, "The PKCS#11 module refused.", "The line ends with the module's own error."),
    Code(
        "HSM_KEY",
        ERROR,
        "A key is not in the token exactly once, its halves do not fit, or it does not sign.",
        "Restore the token from a backup, and find out who changed it.",
    ),
    Code(
        "HSM_HANGS",
        ERROR,
        "The PKCS#11 module does not answer.",
        "See whether the HSM is there: its network, its connector, its plug. It is used again as soon as it answers.",
    ),
    Code("HSM_LABEL", ERROR, "A token's label is empty or too long.", "Use a shorter deployment name."),
    Code(
        "HSM_TURN",
        ERROR,
        "Another process makes, destroys or lists keys of a SoftHSM token, and does not end.",
        "`fuser FOLDER` names it: see what it is, and end it.",
    ),
    Code(
        "HSM_LOCKED",
        ERROR,
        "The token's PIN is locked after too many wrong tries.",
        "Let the security officer set it anew; find out who tried.",
    ),
    Code(
        "HSM_MECHANISM",
        ERROR,
        "The token offers no such kind of key or signature.",
        "Use another kind, or another token; the maker's documents say which.",
    ),
    Code(
        "HSM_MODULE",
        ERROR,
        "There is no PKCS#11 module, the file is none, or others can change it.",
        "`apt-get install softhsm2`, or correct `module-path` in the token's URI; the module must be root's or yours alone.",
    ),
    Code(
        "HSM_PIN",
        ERROR,
        "The token's PIN is wrong, expired or not set.",
        "Use the keystore that was made together with the token.",
    ),
    Code(
        "HSM_PROCESS",
        ERROR,
        "The process that holds the token cannot start, does not answer or is gone.",
        "Start the component again; look at its log.",
    ),
    Code("HSM_REQUEST", ERROR, "A request to the token's process that is none.", "It is a defect to report."),
    Code("HSM_TOKEN", ERROR, "The token is not there, not plugged in, not unique, or cannot be made.", _INIT),
    Code(
        "TOKENS",
        ERROR,
        "A deployment has no token of that name.",
        "Use one of those that the line names.",
    ),
    Code(
        "TOKEN_URI",
        ERROR,
        "A PKCS#11 URI names no token, says something twice or unknown, or holds a PIN.",
        "Correct it as the line says; [Tokens and keys](tokens.md) has examples. The PIN is asked for.",
    ),
    Code("ATTESTATION", ERROR, "A key attestation is none, or is false.", "Ask for a new one with your own challenge."),
    Code("KEY_DESTROY", ERROR, "A key would be destroyed for good.", "Say `--yes`."),
    Code("KEY_ID", ERROR, "A key's id is empty, too long, or not printable ASCII.", "Choose another."),
    Code(
        "KEY_IN_USE",
        ERROR,
        "The deployment runs with that key.",
        "Put what replaces it in its place first.",
    ),
    Code("KEY_INPUT", ERROR, "What was given is no key.", "Give a PEM without a passphrase, or the secret's text."),
    Code("KEY_KIND", ERROR, "Keys of that kind are not used here.", "Use one of those that the line names."),
    Code("FORMAT", ERROR, "Rows are not printed in that form.", "Use table, csv or json."),
    Code(
        "TLS_FILES",
        ERROR,
        "CA, certificate and key cannot be read, or not be used together.",
        f"For `[vault] ca`: put the CA of your vault there. {_INIT}",
    ),
    Code("TLS_KEY", ERROR, "A TLS key cannot be read, or does not open with the keystore's passphrase.", _INIT),
    Code(
        "BUS_KEYS",
        ERROR,
        "The file of the broker's keys is missing, damaged, or disagrees with the trust root.",
        "Restore the folder from a backup, and find out who changed it.",
    ),
)
