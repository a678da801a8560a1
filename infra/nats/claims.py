"""Operator, account and activation tokens, rendered from the topology: what the broker enforces.

- JetStream lives in account CORE.  Its signing keys are scoped: one whose users may do nothing (it signs
  activation tokens), one for the break-glass administrator.  No component can log in to CORE.
- Every component has an account of its own.  It imports, each by an activation token for that account
  alone: the subjects that it publishes, and for each stream that it reads `MSG.NEXT` and `RESET` of its own
  durable.  NATS does not check permissions on reply subjects; here a forged reply stays in the account of
  whoever forged it, and as what is published is imported by a pattern, no answer becomes a publish there: a reply
  subject that is imported literally would store what the broker answers, other people's messages included.
- A component's users are signed by its role key, whose scope is literal (no `{{…}}` templates): publish their own
  subjects and what reading needs, subscribe to `_INBOX_<component>.>`, nothing else; no message longer than its kinds.
- A component with state has a JetStream of its own, bounded, for one stream and one bucket that an
  administrator creates; CORE's services have the local prefix `core.JS.API` there.  The administrator's key
  is a scoped signing key in that account as well.
- Account SYS has one scoped key: the authority pushes account tokens, lists connections and kicks.

Account tokens expire (replaying an old one would undo a revocation); the broker drops an account's
connections when that happens, so they are rendered anew well before.

The broker is not trusted with meaning: what an attacker could make it accept beyond these tokens still
fails at every verifier, which takes scopes from the trust root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from tallystick.infra.nats.counts import COUNTS
from tallystick.infra.nats.topology import LEASE_BUCKET, LOCAL_API, STATE_STREAM, Bus, Component
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.nats_jwt import Claims, Signer, encode_jwt, encode_key
from tallystick.schemas.subjects import KINDS

ADMIN: Final = "admin"
CORE: Final = "CORE"
SYS: Final = "SYS"
_NEXT: Final = "$JS.API.CONSUMER.MSG.NEXT"
_RESET: Final = "$JS.API.CONSUMER.RESET"

MAX_PAYLOAD: Final = 1_048_576
# Make-before-break needs two connections, a restart beside a dying process two more.
MAX_CONNECTIONS: Final = 16
# A fresh inbox for every pull, and the client's own for replies.
MAX_SUBSCRIPTIONS: Final = 128
# In a list of revocations: whoever was issued up to then.
EVERYBODY: Final = "*"
_STANDARD: Final = ["STANDARD"]


class ComponentKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A component's account key and role key: raw public keys."""

    account: bytes
    role: bytes


class BusKeys(msgspec.Struct, frozen=True, kw_only=True):
    """All public keys of a deployment's broker, raw (32 bytes).

    `operator` is the operator root, `operator_signing` signs accounts, `activation` signs activation tokens,
    `admin` the break-glass administrator's users, `system_role` the authority's users in account SYS.
    """

    operator: bytes
    operator_signing: bytes
    system_account: bytes
    system_role: bytes
    core_account: bytes
    activation: bytes
    admin: bytes
    components: dict[str, ComponentKeys]


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """From when to when tokens hold: Unix seconds; `expires_s` 0: for ever."""

    issued_s: int
    expires_s: int


def operator_token(root: Signer, keys: BusKeys, deployment: str, validity: Validity) -> str:
    """The operator's token, signed by the operator root itself."""
    nats: dict[str, object] = {
        "signing_keys": [encode_key("O", keys.operator_signing)],
        "system_account": encode_key("A", keys.system_account),
        "strict_signing_key_usage": True,
        "type": "operator",
        "version": 2,
    }
    subject = encode_key("O", keys.operator)
    return encode_jwt(root, "O", _claims(subject, subject, deployment, validity, nats))


class Accounts:
    """Renders account tokens.  `operator` and `activation` are the keys that `keys` names for that."""

    def __init__(self, bus: Bus, keys: BusKeys, operator: Signer, activation: Signer) -> None:
        """Raises `ConfigError` if a component has no keys, or a signer is not the one named."""
        missing = sorted(set(bus.components) - set(keys.components))
        if missing:
            raise ConfigError("BUS_KEYS", f"no account and role keys for {', '.join(missing)}")
        for signer, public, what in (
            (operator, keys.operator_signing, "operator signing"),
            (activation, keys.activation, "activation"),
        ):
            if signer.public != public:
                raise ConfigError("BUS_KEYS", f"the {what} key is not the one that signs")
        # Components whose account takes no connection: their tokens are rendered so until they are taken out.
        self.closed: set[str] = set()
        self._bus = bus
        self._keys = keys
        self._operator = operator
        self._activation = activation

    def all(self, validity: Validity, revocations: Mapping[str, Mapping[bytes, int]] | None = None) -> dict[str, str]:
        """Every account's token by account key (`A…`): what the resolver is preloaded with.

        `revocations`: by component, raw session keys and the Unix second up to which their tokens are void; the empty
        key stands for everybody.
        """
        revocations = revocations or {}
        tokens = {
            encode_key("A", self._keys.system_account): self.system(validity),
            encode_key("A", self._keys.core_account): self.core(validity),
        }
        for name in self._bus.components:
            key = encode_key("A", self._keys.components[name].account)
            tokens[key] = self.component(name, validity, revocations.get(name))
        return tokens

    def system(self, validity: Validity) -> str:
        """Account SYS."""
        scope = _scope(
            self._keys.system_role,
            "authority",
            publishes=(
                "$SYS.REQ.CLAIMS.UPDATE",
                "$SYS.REQ.CLAIMS.LIST",
                "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
                "$SYS.REQ.ACCOUNT.*.CONNZ",
                COUNTS,
                "$SYS.REQ.SERVER.*.KICK",
            ),
            inbox="_INBOX_authority",
        )
        return self._account(self._keys.system_account, SYS, validity, {"signing_keys": [scope]}, _limits())

    def core(self, validity: Validity, signing_keys: Sequence[bytes] = ()) -> str:
        """Account CORE.  `signing_keys`: more, unscoped ones: each is root of the bus (none in a deployment)."""
        kinds = {kind.name: kind for kind in KINDS.values()}
        exports: list[dict[str, object]] = [
            _export("next", f"{_NEXT}.*.*", response="Stream"),
            _export("reset", f"{_RESET}.*.*"),
            *(_export(kind.name, _imported(kind.pattern)) for kind in kinds.values() if self._published(kind.pattern)),
        ]
        keys: list[object] = [
            _scope(self._keys.activation, "activation", publishes=(), inbox=""),
            _scope(self._keys.admin, ADMIN, publishes=_admin(self._bus.streams), inbox=f"_INBOX_{ADMIN}"),
            *(encode_key("A", key) for key in signing_keys),
        ]
        limits = {**_limits(), **_jetstream(memory=0, disk=-1, streams=len(self._bus.streams)), "exports": len(exports)}
        return self._account(
            self._keys.core_account, CORE, validity, {"exports": exports, "signing_keys": keys}, limits
        )

    def component(self, name: str, validity: Validity, revocations: Mapping[bytes, int] | None = None) -> str:
        """The account of component `name`; `revocations` as in `all`."""
        component = self._bus.component(name)
        keys = self._keys.components[name]
        # In an account with a JetStream of its own the broker takes a pattern for what that one answers as well.
        literal = component.state_bytes > 0
        published = dict.fromkeys(p if literal else _imported(p) for p in component.publishes)
        imports = [self._import(keys.account, pattern, pattern, validity) for pattern in published]
        for stream in component.reads:
            for subject, local in (
                (f"{_NEXT}.{stream}.{name}", component.next_subject(stream)),
                (f"{_RESET}.{stream}.{name}", component.reset_subject(stream)),
            ):
                imports.append(self._import(keys.account, subject, local, validity))
            if component.whole:
                imports.append(
                    self._import(
                        keys.account, f"{_RESET}.{stream}.{component.probe}", component.end_subject(stream), validity
                    )
                )
        payload = MAX_PAYLOAD if component.state_bytes else component.payload
        signing: list[object] = [
            _scope(keys.role, name, publishes=allowed(component), inbox=component.inbox, payload=payload)
        ]
        limits = {**_limits(), "imports": len(imports), "payload": payload}
        if name in self.closed:
            limits["conn"] = 0
        if component.state_bytes:
            limits |= _jetstream(memory=0, disk=component.state_bytes, streams=2)
            streams = (STATE_STREAM, f"KV_{LEASE_BUCKET}")
            signing.append(_scope(self._keys.admin, ADMIN, publishes=_admin(streams), inbox=f"_INBOX_{ADMIN}"))
        nats: dict[str, object] = {"imports": imports, "signing_keys": signing}
        if revocations:
            nats["revocations"] = {
                encode_key("U", key) if key else EVERYBODY: until for key, until in sorted(revocations.items())
            }
        return self._account(keys.account, name, validity, nats, limits)

    def _published(self, pattern: str) -> bool:
        head = pattern.split(".*", maxsplit=1)[0]
        return any(p == head or p.startswith(f"{head}.") for c in self._bus.components.values() for p in c.publishes)

    def _import(self, importer: bytes, subject: str, local: str, validity: Validity) -> dict[str, object]:
        core = encode_key("A", self._keys.core_account)
        nats: dict[str, object] = {
            "subject": subject,
            "kind": "service",
            "issuer_account": core,
            "type": "activation",
            "version": 2,
        }
        issuer, sub = encode_key("A", self._keys.activation), encode_key("A", importer)
        token = encode_jwt(self._activation, "A", _claims(issuer, sub, subject, validity, nats))
        entry: dict[str, object] = {
            "name": subject,
            "subject": subject,
            "account": core,
            "token": token,
            "type": "service",
        }
        if local != subject:
            entry["local_subject"] = local
        return entry

    def _account(
        self, public: bytes, name: str, validity: Validity, nats: dict[str, object], limits: dict[str, object]
    ) -> str:
        body: dict[str, object] = {**nats, "limits": limits, "type": "account", "version": 2}
        issuer = encode_key("O", self._keys.operator_signing)
        return encode_jwt(self._operator, "O", _claims(issuer, encode_key("A", public), name, validity, body))


def allowed(component: Component) -> tuple[str, ...]:
    """Everything that a component's users may publish to, as its account sees it."""
    subjects = list(component.publishes)
    for stream in component.reads:
        subjects += [component.next_subject(stream), component.reset_subject(stream)]
        if component.whole:
            subjects.append(component.end_subject(stream))
    if component.state_bytes:
        bucket = f"KV_{LEASE_BUCKET}"
        subjects += [
            f"{STATE_STREAM.lower()}.>",
            f"$JS.API.STREAM.INFO.{STATE_STREAM}",
            f"$JS.API.DIRECT.GET.{STATE_STREAM}",
            f"$JS.API.DIRECT.GET.{STATE_STREAM}.>",
            f"$KV.{LEASE_BUCKET}.>",
            f"$JS.API.STREAM.INFO.{bucket}",
            f"$JS.API.DIRECT.GET.{bucket}.>",
        ]
        if any(subject.startswith(f"{LOCAL_API}.") for subject in component.publishes):
            raise ConfigError("TOPOLOGY_SUBJECT", f"{component.name} publishes under {LOCAL_API}")
    return tuple(subjects)


def _imported(pattern: str) -> str:
    """The pattern under which an account imports what it publishes: with at least one `*`; see the module docstring."""
    return pattern if "*" in pattern else f"{pattern.rpartition('.')[0]}.*"


def _admin(streams: Iterable[str]) -> tuple[str, ...]:
    """What an administrator needs to create and change streams and durables: never delete or purge a stream."""
    subjects = ["$JS.API.INFO", "$JS.API.STREAM.NAMES"]
    for stream in streams:
        subjects += [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "UPDATE")]
        subjects += [f"$JS.API.CONSUMER.NAMES.{stream}"]
        subjects += [f"$JS.API.CONSUMER.{verb}.{stream}.*" for verb in ("INFO", "CREATE", "DELETE")]
    return tuple(subjects)


def _claims(issuer: str, subject: str, name: str, validity: Validity, nats: dict[str, object]) -> Claims:
    body = msgspec.json.encode([issuer, subject, validity.issued_s, validity.expires_s, nats])
    return Claims(
        iat=validity.issued_s,
        iss=issuer,
        sub=subject,
        name=name,
        exp=validity.expires_s,
        jti=hashlib.sha256(body).hexdigest()[:32],
        nats=nats,
    )


def _export(name: str, subject: str, response: str = "Singleton") -> dict[str, object]:
    return {"name": name, "subject": subject, "type": "service", "token_req": True, "response_type": response}


def _scope(
    key: bytes, role: str, *, publishes: Sequence[str], inbox: str, payload: int = MAX_PAYLOAD
) -> dict[str, object]:
    pub: dict[str, object] = {"allow": list(publishes)} if publishes else {"deny": [">"]}
    sub: dict[str, object] = {"allow": [f"{inbox}.>"]} if inbox else {"deny": [">"]}
    return {
        "kind": "user_scope",
        "key": encode_key("A", key),
        "role": role,
        "template": {
            "pub": pub,
            "sub": sub,
            "subs": MAX_SUBSCRIPTIONS,
            "data": -1,
            "payload": payload,
            "allowed_connection_types": _STANDARD,
        },
    }


def _limits() -> dict[str, object]:
    return {
        "subs": MAX_SUBSCRIPTIONS * MAX_CONNECTIONS,
        "data": -1,
        "payload": MAX_PAYLOAD,
        "imports": 0,
        "exports": 0,
        "wildcards": True,
        "conn": MAX_CONNECTIONS,
        "leaf": 0,
        "disallow_bearer": True,
    }


def _jetstream(*, memory: int, disk: int, streams: int) -> dict[str, object]:
    return {"mem_storage": memory, "disk_storage": disk, "streams": streams, "consumer": -1}
