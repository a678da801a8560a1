"""Codes of who somebody is: trust root, operator's notes, keys, tokens, credentials, certificates."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, DENIAL, ERROR, REFUSAL, Code

_THIEF: Final = (
    "It has no effect; somebody holds a key that is not his: find out whose machine it came from, and revoke "
    "that component."
)
_RESTORE: Final = "Restore the deployment's folder from a backup, and find out who changed it."
_DEFECT: Final = "It is a defect to report."

CODES: Final = (
    Code(
        "TRUST_ROOT",
        ERROR | DEAD,
        "The trust root cannot be read, or holds values that none may have.",
        "Restore the file that the line names from a backup; a new deployment is made with `tallystick init`.",
    ),
    Code(
        "TRUST_ROOT_MISSING",
        ERROR,
        "No version of the trust root was given.",
        "Copy the folder `trust` beside the archive, or restore the deployment from a backup.",
    ),
    Code(
        "TRUST_ROOT_NUMBER",
        ERROR,
        "The versions of the trust root do not count up from 1: one is missing, or stands twice.",
        _RESTORE,
    ),
    Code(
        "TRUST_ROOT_KEY",
        ERROR,
        "Version 1 of the trust root names another operator root than the one that is pinned.",
        "Give the right key with `--root`; if it is the right one, the trust root was exchanged.",
    ),
    Code(
        "TRUST_ROOT_DEPLOYMENT",
        ERROR,
        "A trust root of another deployment.",
        "Put back the trust root of this deployment from a backup.",
    ),
    Code(
        "TRUST_ROOT_EXPIRED",
        ERROR | DENIAL,
        "The trust root is not valid now: its year is over, or the clock is wrong.",
        "Set the clock, or let the operator sign the next version with `tallystick admit DIR`.",
    ),
    Code(
        "TRUST_PATTERN",
        ERROR,
        "The trust root lets a component publish under a pattern that is no kind of subject.",
        "Correct the topology and sign it with `tallystick admit DIR`.",
    ),
    Code(
        "PUBLIC_KEY",
        ERROR | DEAD,
        "The text is not the 64 lower-case hex digits of a public key.",
        "Give the key as `tallystick init` printed it.",
    ),
    Code(
        "COMPONENT_UNKNOWN",
        ERROR | DEAD,
        "The trust root names no such component.",
        "Let the operator admit it with `tallystick admit DIR`; a message in such a name is forged.",
    ),
    Code(
        "SCOPE",
        DEAD,
        "A component published a subject that the trust root does not let it publish.",
        "None is needed, it had no effect; revoke the component if it is yours and was entered.",
    ),
    Code(
        "ARM_LEASE",
        ERROR | DEAD,
        "A lease that ends before it starts, or lasts longer than 12 hours.",
        "Arm again with `tallystick arm DIR --hours 8`.",
    ),
    Code(
        "ARM_LEASE_SCOPE",
        ERROR | DEAD,
        "A lease for another deployment or another component.",
        "Arm this deployment with `tallystick arm DIR --hours 8`.",
    ),
    Code(
        "LEASE_HARDWARE_KEY",
        ERROR | DEAD,
        "A lease for another hardware token than the trust root names for execution.",
        "Arm again with `tallystick arm DIR --hours 8`; if the token was not changed, find out who signs leases.",
    ),
    Code(
        "LEASE_CAPS",
        ERROR | DEAD,
        "A lease that gives more than the operator's caps in the trust root, or names an asset twice.",
        "Arm again within the caps of `deployment.toml`, as they were signed with `tallystick admit DIR`.",
    ),
    Code(
        "METHOD_DOCUMENT",
        ERROR | DEAD,
        "The trust root names a method by which a component cannot prove itself.",
        "Correct `[identity]` in `deployment.toml` and sign it with `tallystick admit DIR`.",
    ),
    Code(
        "IDENTITY_CONFIG",
        ERROR,
        "What `[identity]` in `deployment.toml` names cannot be read, or is no key, key set or certificate authority.",
        "Correct the key or the file that the line names.",
    ),
    Code(
        "REARM_SCOPE",
        ERROR | DEAD,
        "A re-arming note for another deployment, or for another breaker than its subject names.",
        "Close the breaker with `tallystick rearm DIR SCOPE`.",
    ),
    Code(
        "REARM_NOT_TRIPPED",
        ERROR | DEAD,
        "A re-arming note for a breaker that is not tripped.",
        "Nothing: the breaker is closed already.",
    ),
    Code(
        "REARM_OTHER_TRIP",
        ERROR | DEAD,
        "A re-arming note for an earlier trip: an old note opens nothing anew.",
        "Look at what tripped it since, then `tallystick rearm DIR SCOPE`.",
    ),
    Code("KEY", ERROR, "A public key that has not 32 bytes.", _DEFECT),
    Code("KEY_SEED", ERROR, "A seed that has not 32 bytes.", _DEFECT),
    Code(
        "KEY_TEXT",
        ERROR | DEAD,
        "The text is no public key in the broker's notation (56 characters, O, A, U or N first).",
        "Give the key as `tallystick init` wrote it.",
    ),
    Code(
        "KEY_PREFIX",
        ERROR | DEAD,
        "A key of another kind than the place takes: operator, account or user.",
        "Give the key as `tallystick init` wrote it.",
    ),
    Code(
        "KEY_CHECKSUM",
        ERROR | DEAD,
        "A public key whose checksum is wrong: a letter was changed.",
        "Copy the key again.",
    ),
    Code("BOOT", ERROR, "A boot id that has not 16 bytes.", _DEFECT),
    Code("JWT_BASE64", DEAD, "A part of a token is not the one base64url spelling of its bytes.", _THIEF),
    Code("JWT_CANONICAL", DEAD, "The claims of a token do not re-encode to the same bytes.", _THIEF),
    Code("JWT_CLAIMS", DEAD, "The claims of a token do not parse.", _THIEF),
    Code(
        "JWT_HEADER",
        DEAD,
        "A token whose header is not the one that this system writes, such as one that asks for another algorithm.",
        _THIEF,
    ),
    Code("JWT_ID", ERROR, "A token id with other characters than A-Z, a-z, 0-9, '_' and '-', or too long.", _DEFECT),
    Code("JWT_ISSUER", ERROR, "Claims that name another issuer than the key that signs them.", _DEFECT),
    Code("JWT_PARTS", DEAD, "A token that has not three parts.", _THIEF),
    Code("JWT_SIGNATURE", DEAD, "A token that its issuer did not sign.", _THIEF),
    Code("JWT_SIZE", DEAD, "A token longer than the limit.", _THIEF),
    Code(
        "JWT_TIMES",
        ERROR,
        "A token that would expire before it is issued.",
        "Set the clock of the authority's machine.",
    ),
    Code(
        "CREDENTIAL",
        DEAD,
        "A token that is no component's session: it holds more, or less, than name, keys, boot and times.",
        _THIEF,
    ),
    Code(
        "CREDENTIAL_LIFETIME",
        DEAD,
        "A credential that lives longer than the trust root allows its component.",
        _THIEF,
    ),
    Code(
        "CREDENTIAL_FOREIGN",
        ERROR,
        "The authority handed out a credential of another component, boot or key.",
        "Check that the process talks to its own deployment's authority; if so, do not trust that authority any more.",
    ),
    Code("ROLE_KEY", DEAD, "A credential signed by a key that the trust root does not name for its component.", _THIEF),
    Code("ACCOUNT", DEAD, "A credential that names another component's account at the broker.", _THIEF),
    Code(
        "LOGIN_NONCE",
        ERROR,
        "The broker asks for a signature over something that is no login.",
        "Find out what runs at the broker's address: a broker does not ask for that.",
    ),
    Code("CA_KEY", ERROR, "The CA's certificate is not of the CA's key and this deployment.", _RESTORE),
    Code(
        "CERTIFICATE_ANSWER",
        ERROR,
        "The authority answered with something that is no certificate of the deployment's issuing CA.",
        "Find out who answers on the authority's port; the present certificate stays in use.",
    ),
    Code(
        "CERTIFICATE_FOREIGN",
        ERROR,
        "The authority answered with a certificate that is not for the key and name that were asked for, or not valid now.",
        "Find out who answers on the authority's port; compare the clocks of both machines.",
    ),
    Code(
        "CERTIFICATE_HOST",
        ERROR,
        "`host` in deployment.toml is none that the operator let the issuing CA certify servers for.",
        "Run `tallystick admit` while the deployment is down, or set `host` back.",
    ),
    Code(
        "CERTIFICATE_KEPT",
        ERROR,
        "A renewed certificate cannot be written; the present one stays in use and is renewed again.",
        "Free some space, or give the process back the right to write to `DIR/pki`.",
    ),
    Code("CERTIFICATE", ERROR, "A certificate cannot be read or is no PEM certificate.", _RESTORE),
    Code(
        "SPIFFE",
        ERROR | REFUSAL,
        "A certificate that does not hold exactly one name of this system.",
        "Use the certificates that `tallystick init` made.",
    ),
    Code(
        "SPIFFE_DOMAIN",
        ERROR | REFUSAL,
        "A certificate of another deployment.",
        "Use the certificates of this deployment's `pki` folder.",
    ),
)
