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
    Code("HSM_LABEL", ERROR, "A token's label is empty or too long.", "Use a shorter deployment name."),
    Code(
        "HSM_LOCKED",
        ERROR,
        "The token's PIN is locked after too many wrong tries.",
        "Let the security officer set it anew; find out who tried.",
    ),
    Code(
        "HSM_MODULE",
        ERROR,
        "There is no PKCS#11 module, or the file is none.",
        "`apt-get install softhsm2`, or set `TALLYSTICK_PKCS11_MODULE`.",
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
    Code("TLS_FILES", ERROR, "CA, certificate and key cannot be used together.", _INIT),
    Code("TLS_KEY", ERROR, "A TLS key cannot be read, or does not open with the keystore's passphrase.", _INIT),
    Code(
        "BUS_KEYS",
        ERROR,
        "The file of the broker's keys is missing, damaged, or disagrees with the trust root.",
        "Restore the folder from a backup, and find out who changed it.",
    ),
)
