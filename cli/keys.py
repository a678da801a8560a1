"""`tallystick keys`: the keys in a deployment's PKCS#11 tokens.

The functions open one token at a time, with its PIN from the keystore, or of components that borrow theirs from the vault,
and print no secret: what is imported comes from a prompt or a descriptor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tallystick.cli.options import Dir, PinFd
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.errors import ConfigError

if TYPE_CHECKING:
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.hsm import Token
    from tallystick.runtime.keys.key_info import KeyInfo
    from tallystick.runtime.keys.keystore import Keystore

app = typer.Typer(no_args_is_help=True, help="The keys in the deployment's PKCS#11 tokens.")

_Token = Annotated[
    str,
    typer.Argument(
        metavar="TOKEN", help="operator, signing, roles, issuer, custody, portfolio, execution, audit or keymaster."
    ),
]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The key's CKA_ID, as text; an id is used once.")]
DAY_NS: Final = 86_400 * SECOND
GENERATED: Final = ("ed25519", "p256", "secp256k1", "rsa", "rsa-3072", "rsa-4096")
IMPORTED: Final = ("pem", "hmac-sha256", "hmac-sha384", "hmac-sha512")
MAX_ID: Final = 64
RSA_BITS: Final = 2048


def _opened(directory: Path, pin_fd: int | None) -> tuple[Deployment, Keystore]:
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.keys.keystore import Keystore, read_pin

    deployment = Deployment.load(directory)
    return deployment, Keystore.open(deployment.keystore, read_pin("Master PIN: ", pin_fd))


def _open(deployment: Deployment, keystore: Keystore, label: str, *, writable: bool = False) -> Token:
    from tallystick.runtime.deployment import vault
    from tallystick.runtime.deployment.folder import pin_name
    from tallystick.runtime.keys.hsm import Token

    if label not in deployment.token_labels:
        raise ConfigError("TOKENS", f"{label!r} is no token; there are {', '.join(deployment.token_labels)}")
    pin = vault.secret(deployment, keystore, label, pin_name(label), lambda text: typer.echo(text, err=True))
    return Token.open(deployment.token(label), label, pin, writable=writable)


def _key_id(text: str) -> bytes:
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID):
        raise ConfigError("KEY_ID", f"a key's id is 1 to {MAX_ID} printable ASCII characters")
    return text.encode("ascii")


@app.command(
    "list", epilog="Example: tallystick keys list ./desk        or: tallystick keys list ./desk custody --format json"
)
def list_keys(
    directory: Dir,
    token: Annotated[str, typer.Argument(metavar="[TOKEN]", help="One token; default: every one.")] = "",
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    pin_fd: PinFd = None,
) -> None:
    """Every key: what it is, how old, how often it was used, and whether it was born inside.

    Exit code 1 where a key can leave its token, or could have.
    """
    from tallystick.cli.rows import Format, print_csv, print_json, print_table

    try:
        wanted = Format(form)
    except ValueError:
        raise ConfigError("FORMAT", f"{form!r} is none of {', '.join(Format)}") from None
    deployment, keystore = _opened(directory, pin_fd)
    found = list(_rows(deployment, keystore, (token,) if token else deployment.token_labels, time.time_ns()))
    columns = ["token", "id", "kind", "days", "uses", "born", "leaves", "public"]
    printed = {Format.JSON: print_json, Format.TABLE: print_table}.get(wanted)
    if printed is None:
        print_csv(columns, found, raw=False)
    else:
        printed(columns, found)
    if any(row[6] != "never" for row in found):
        raise typer.Exit(1)


def _rows(deployment: Deployment, keystore: Keystore, labels: tuple[str, ...], now: int) -> Iterator[list[object]]:
    from tallystick.runtime.keys import inventory, uses

    for label in labels:
        with _open(deployment, keystore, label) as token:
            keys = inventory.keys(token)
        counted = uses.read(deployment.state(label))
        for key in keys:
            days = None if not key.born else (now - key.born) // DAY_NS
            used = counted.get(key.key_id)
            yield [
                label,
                key.name,
                key.kind,
                days,
                used,
                "inside" if key.local else "outside",
                _leaves(key),
                key.public,
            ]


def _leaves(key: KeyInfo) -> str:
    if not key.protected or not key.fixed:
        return "CAN"
    # One that came from outside was known there; from then on it stays.
    return "could" if key.local and not key.never_extractable else "never"


@app.command(epilog="Example: tallystick keys generate ./desk custody venue-2 --kind ed25519")
def generate(
    directory: Dir,
    token: _Token,
    key_id: _Id,
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(GENERATED)}.")] = "ed25519",
    pin_fd: PinFd = None,
) -> None:
    """Make a key pair in the token, that only signs and never leaves; prints the public key as PEM."""
    from tallystick.runtime.keys.key_info import dated, public_pem

    if kind not in GENERATED:
        raise ConfigError("KEY_KIND", f"{kind!r} is none of {', '.join(GENERATED)}")
    identity = _key_id(key_id)
    deployment, keystore = _opened(directory, pin_fd)
    with _open(deployment, keystore, token, writable=True) as opened:
        label = dated(key_id, time.time_ns())
        match kind:
            case "ed25519":
                pem = public_pem(opened.generate_ed25519(identity, label))
            case "p256":
                pem = public_pem(opened.generate_p256(identity, label))
            case "secp256k1":
                pem = public_pem(opened.generate_secp256k1(identity, label))
            case _:
                pem = public_pem(opened.generate_rsa(identity, label, int(kind.partition("-")[2] or RSA_BITS)))
    typer.echo(pem, nl=False)


@app.command(
    "import",
    epilog="Example: tallystick keys import ./desk custody venue-2 --kind pem --secret-fd 3 3<key.pem     or: --exchange kraken",
)
def import_key(
    directory: Dir,
    token: _Token,
    key_id: _Id,
    kind: Annotated[
        str,
        typer.Option(
            help="pem (default): a private key, PKCS#8 or the like; hmac-sha256, -sha384, -sha512: a secret as text. "
            "With --exchange: ed25519, rsa, p256, secp256k1 or hmac, where the exchange takes several."
        ),
    ] = "",
    exchange: Annotated[
        str, typer.Option(help="The secret is as this exchange (ccxt's id) gives it out: `tallystick exchanges`.")
    ] = "",
    secret_fd: Annotated[
        int | None, typer.Option("--secret-fd", help="Read the key from this descriptor; a secret also from a prompt.")
    ] = None,
    pin_fd: PinFd = None,
) -> None:
    """Take in a key that was made elsewhere: from then on it stays.  Destroy every copy; a key born inside has none."""
    from tallystick.runtime.keys.key_info import dated
    from tallystick.runtime.keys.material import from_pem, mac_material, read_secret
    from tallystick.venues.signing.schemes import require_signable
    from tallystick.venues.signing.token_keys import key_ids, take_in

    kind = kind or ("" if exchange else IMPORTED[0])
    scheme = require_signable(exchange, kind) if exchange else None
    if scheme is None and kind not in IMPORTED:
        raise ConfigError("KEY_KIND", f"{kind!r} is none of {', '.join(IMPORTED)}")
    identity = _key_id(key_id)
    deployment, keystore = _opened(directory, pin_fd)
    secret = read_secret("Secret: ", secret_fd)
    label = dated(key_id, time.time_ns())
    with _open(deployment, keystore, token, writable=True) as opened:
        if scheme is not None:
            how = "; ".join(
                f"{made.decode('ascii')}: {came}"
                for made, came in zip(
                    key_ids(identity, scheme), take_in(opened, identity, label, secret, scheme), strict=True
                )
            )
        elif kind == "pem":
            how = opened.import_private(identity, label, from_pem(secret))
        else:
            how = opened.import_mac(identity, label, mac_material(secret, kind.removeprefix("hmac-")))
    typer.echo(f"key {key_id} of token {token} is there ({how}); now destroy every other copy of it")


@app.command(epilog="Example: tallystick keys attest ./desk custody venue --challenge 2026-11-26-audit >venue.json")
def attest(
    directory: Dir,
    token: _Token,
    key_id: _Id,
    challenge: Annotated[str, typer.Option(help="A text of who asks, so that an old answer is none.")] = "",
    pin_fd: PinFd = None,
) -> None:
    """What the token says of a key, under that key's signature, as JSON; `keys check` verifies it anywhere."""
    import msgspec

    from tallystick.runtime.keys import inventory

    identity = _key_id(key_id)
    deployment, keystore = _opened(directory, pin_fd)
    with _open(deployment, keystore, token) as opened:
        said = inventory.attest(opened, identity, challenge, time.time_ns())
    typer.echo(msgspec.json.format(msgspec.json.encode(said), indent=2).decode())


@app.command(epilog="Example: tallystick keys check venue.json --challenge 2026-11-26-audit")
def check(
    file: Annotated[Path, typer.Argument(help="What `keys attest` printed.")],
    challenge: Annotated[str, typer.Option(help="The text that it was asked for with.")] = "",
) -> None:
    """Verify an attestation; exit code 1 where it is false."""
    from tallystick.runtime.keys.key_info import verify_attestation
    from tallystick.schemas.errors import Unverified

    try:
        text = file.read_bytes()
    except OSError as exc:
        raise ConfigError("ATTESTATION", f"{file}: {exc.strerror}") from exc
    try:
        said = verify_attestation(text, challenge)
    except Unverified as exc:
        typer.echo(f"FALSE: {exc}")
        raise typer.Exit(1) from exc
    inside = "was born inside" if said.key.local else "came from outside"
    typer.echo(
        f"the {said.key.kind} key {said.key.name!r} {inside} token {said.token.label!r} (serial {said.token.serial}, "
        f"{said.token.manufacturer} {said.token.model}) and leaves it: {_leaves(said.key)}; its holder said so himself"
    )


@app.command(epilog="Example: tallystick keys destroy ./desk custody venue-1 --yes")
def destroy(
    directory: Dir,
    token: _Token,
    key_id: _Id,
    yes: Annotated[bool, typer.Option("--yes", help="Without it nothing is destroyed.")] = False,
    pin_fd: PinFd = None,
) -> None:
    """Destroy a key, for good.  A key that the deployment runs with is refused."""
    identity = _key_id(key_id)
    deployment, keystore = _opened(directory, pin_fd)
    if deployment.key_in_use(token, identity):
        raise ConfigError(
            "KEY_IN_USE", f"the deployment runs with key {key_id!r} of token {token}; what replaces it comes first"
        )
    with _open(deployment, keystore, token, writable=True) as opened:
        if not yes:
            raise ConfigError("KEY_DESTROY", f"key {key_id!r} of token {token} would be gone for good; say --yes")
        opened.destroy(identity)
    typer.echo(f"key {key_id} of token {token} is destroyed")


@app.command(
    epilog="Example: tallystick keys pin ./desk custody --new        or: tallystick keys pin ./desk custody        after "
    "deployment.toml named another token"
)
def pin(
    directory: Dir,
    token: _Token,
    new: Annotated[
        bool, typer.Option("--new", help="Have the token and the deployment use a new, random PIN.")
    ] = False,
    pin_fd: PinFd = None,
) -> None:
    """Keep the PIN of a token that `deployment.toml` names: asked for, tried, and stored in the keystore.

    With --new nobody is asked for it: the token gets a new one.  custody's, portfolio's and the keymaster's may be changed while
    the deployment is up.  With --pin-fd the token's PIN is the descriptor's second line.
    """
    if new:
        _renew_pin(directory, token, pin_fd)
        return
    from tallystick.runtime.deployment.config import ALL_TOKENS
    from tallystick.runtime.deployment.folder import Deployment, pin_name
    from tallystick.runtime.keys.hsm import Token
    from tallystick.runtime.keys.keystore import Keystore, read_pins

    deployment = Deployment.load(directory)
    if token not in ALL_TOKENS:
        raise ConfigError("TOKENS", f"{token!r} is no token; there are {', '.join(ALL_TOKENS)}")
    master, its = read_pins(("Master PIN: ", f"PIN of token {token}: "), pin_fd)
    keystore = Keystore.open(deployment.keystore, master)
    Token.open(deployment.token(token), token, its).close()
    keystore.secrets[pin_name(token)] = its
    keystore.save()
    typer.echo(f"the PIN of token {token} is kept; it is used from the next start")


def _renew_pin(directory: Path, token: str, pin_fd: int | None) -> None:
    from tallystick.runtime.deployment.pins import renew

    deployment, keystore = _opened(directory, pin_fd)
    if token not in deployment.token_labels:
        raise ConfigError("TOKENS", f"{token!r} is no token; there are {', '.join(deployment.token_labels)}")
    renew(deployment, keystore, token, lambda text: typer.echo(text, err=True))
    typer.echo(f"token {token} has a new PIN, which is kept where the old one was")


@app.command("master-pin", epilog="Example: tallystick keys master-pin ./desk")
def master_pin(directory: Dir, pin_fd: PinFd = None) -> None:
    """Change the master PIN, under which the keystore lies, while the deployment is down.

    With --pin-fd the new one is the descriptor's second line.  Copies of the old keystore still open with the old PIN.
    """
    from tallystick.runtime.deployment.folder import Deployment
    from tallystick.runtime.deployment.owners import require_down
    from tallystick.runtime.keys.keystore import Keystore, read_pins

    deployment = Deployment.load(directory)
    require_down(deployment)
    prompts = ("Master PIN: ", "New master PIN: ", *(() if pin_fd is not None else ("New master PIN again: ",)))
    old, new, *again = read_pins(prompts, pin_fd)
    if any(pin != new for pin in again):
        raise ConfigError("PIN_INPUT", "the new master PIN was typed in two ways: nothing is changed")
    keystore = Keystore.open(deployment.keystore, old)
    keystore.change_pin(new)
    keystore.save()
    typer.echo(f"{deployment.keystore} has the new master PIN; destroy its old copies, which the old one opens")
