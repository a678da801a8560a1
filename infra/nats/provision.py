"""The broker's streams and durables, made as the topology says.

- What is there already is changed until it is the same; what cannot be changed, and a stream that the topology does
  not know, stops the start: it may be evidence.
- What the server kept is compared with what was asked for.
- Durables live as long as the server: they are made again at each of its starts.

The broker is not trusted: what it says of its streams decides whether we start, and vouches for no message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystick.infra.nats.topology import LEASE_BUCKET, STATE_STREAM, Bus, stream_payload, stream_subjects
from tallystick.schemas.errors import ConfigError

if TYPE_CHECKING:
    from nats.aio.client import Client

NS: Final = 1_000_000_000
_NO_SPACE: Final = 10047


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """What `provision` changed: names of streams (`ORDERS`) and durables (`ORDERS/gateway`)."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    removed: tuple[str, ...]


def stream_config(bus: Bus, stream: str) -> dict[str, Any]:
    """The configuration of `stream` as JetStream's API takes it: without rollup, TTL, schedules or direct get."""
    spec = bus.streams[stream]
    config: dict[str, Any] = {
        "name": stream,
        "subjects": list(stream_subjects(stream)),
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "compression": "none",
        # An unbounded stream never drops what it holds: should a bound appear, new messages are refused.
        "discard": "old" if spec.max_bytes or spec.max_age_s or spec.max_per_subject else "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": spec.max_bytes or -1,
        "max_age": spec.max_age_s * NS,
        "max_msgs_per_subject": spec.max_per_subject or -1,
        "max_msg_size": stream_payload(stream),
        "duplicate_window": spec.duplicate_window_s * NS,
        "deny_delete": spec.locked,
        "deny_purge": spec.locked,
        "allow_rollup_hdrs": False,
        "allow_direct": False,
        "mirror_direct": False,
    }
    if spec.durability == "async":
        config["persist_mode"] = "async"
    return config


def durable_config(name: str, filters: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of a component's durable: ack-none, pulled; RESET moves it.  No filters: the whole stream.

    Its state lies in memory: the position is the component's own, and a file that the broker writes anew for each
    delivery is half of what a quiet broker does.  So a broker that was started again has none, until `provision`.
    """
    return {
        "name": name,
        "durable_name": name,
        "filter_subjects": list(filters),
        "ack_policy": "none",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "max_waiting": 64,
        "mem_storage": True,
    }


async def provision(admin: Client, bus: Bus) -> Provisioned:
    """Create or change streams and durables until they are what the topology says; twice is as good as once.

    `admin` is logged in to CORE as break-glass administrator.  A durable that the topology does not know is removed; a
    stream that it does not know, or one that differs in what cannot be changed, is a `ConfigError`: it may be evidence.
    """
    created: list[str] = []
    updated: list[str] = []
    removed: list[str] = []
    unknown = set(await _names(admin, "STREAM.NAMES", "streams")) - set(bus.streams)
    if unknown:
        raise ConfigError(
            "STREAM_UNKNOWN", f"CORE holds streams that the topology does not know: {', '.join(sorted(unknown))}"
        )
    for stream in bus.streams:
        await _ensure_stream(admin, stream_config(bus, stream), created, updated)
        wanted = {c.name: c.filters(stream) for c in bus.components.values() if stream in c.reads}
        wanted |= {c.probe: () for c in bus.components.values() if c.whole}
        there = set(await _names(admin, f"CONSUMER.NAMES.{stream}", "consumers"))
        for name in sorted(there - set(wanted)):
            await _call(admin, f"CONSUMER.DELETE.{stream}.{name}", None)
            removed.append(f"{stream}/{name}")
        for name, filters in wanted.items():
            config = durable_config(name, filters)
            if name in there:
                have = (await _call(admin, f"CONSUMER.INFO.{stream}.{name}", None))["config"]
                if not _differences(config, _one_filter(have)):
                    continue
                if not have.get("mem_storage"):  # which cannot be changed; nothing of it is worth keeping
                    await _call(admin, f"CONSUMER.DELETE.{stream}.{name}", None)
            made = await _call(admin, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
            wrong = _differences(config, _one_filter(made["config"]))
            if wrong:
                raise ConfigError("DURABLE_DIFFERS", f"durable {stream}/{name}: the server kept {', '.join(wrong)}")
            (updated if name in there else created).append(f"{stream}/{name}")
    return Provisioned(created=tuple(created), updated=tuple(updated), removed=tuple(removed))


async def provision_state(admin: Client, state_bytes: int) -> Provisioned:
    """The stream and the bucket of a component with state; `admin` is logged in to that component's account."""
    created: list[str] = []
    updated: list[str] = []
    common = {
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "compression": "none",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": 1,
        "duplicate_window": 120 * NS,
        "allow_direct": True,
    }
    state = {
        **common,
        "name": STATE_STREAM,
        "subjects": [f"{STATE_STREAM.lower()}.>"],
        "discard": "new",
        "max_bytes": state_bytes * 3 // 4,
        "allow_atomic": True,
        # What a component deletes is a tombstone that expires: no component may delete messages.
        "allow_msg_ttl": True,
    }
    # As the clients' key-value API lays a bucket out.
    leases = {
        **common,
        "name": f"KV_{LEASE_BUCKET}",
        "subjects": [f"$KV.{LEASE_BUCKET}.>"],
        "discard": "new",
        "max_bytes": state_bytes // 8,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }
    for config in (state, leases):
        await _ensure_stream(admin, config, created, updated)
    return Provisioned(created=tuple(created), updated=tuple(updated), removed=())


async def _ensure_stream(admin: Client, config: dict[str, Any], created: list[str], updated: list[str]) -> None:
    name = config["name"]
    there = set(await _names(admin, "STREAM.NAMES", "streams"))
    if name not in there:
        made = await _call(admin, f"STREAM.CREATE.{name}", config)
        created.append(name)
    else:
        have = (await _call(admin, f"STREAM.INFO.{name}", None))["config"]
        wrong = _differences(config, have)
        if not wrong:
            return
        try:
            made = await _call(admin, f"STREAM.UPDATE.{name}", config)
        except ConfigError as exc:
            raise ConfigError(
                "STREAM_DIFFERS", f"stream {name} differs in {', '.join(wrong)} and cannot be changed: {exc.text}"
            ) from exc
        updated.append(name)
    wrong = _differences(config, made["config"])
    if wrong:
        raise ConfigError("STREAM_DIFFERS", f"stream {name}: the server kept {', '.join(wrong)}")


def _differences(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """What differs, as `field=have instead of want`; what means "none" and the server's own metadata count as absent."""

    def told(config: Mapping[str, Any]) -> dict[str, Any]:
        metadata = {k: v for k, v in (config.get("metadata") or {}).items() if not k.startswith("_nats.")}
        plain = {k: v for k, v in config.items() if k != "metadata" and v not in (None, False, 0, -1, "", [], {})}
        return plain | ({"metadata": metadata} if metadata else {})

    a, b = told(want), told(have)
    return [
        f"{key}={b.get(key)} instead of {a.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]


def _one_filter(config: Mapping[str, Any]) -> dict[str, Any]:
    """The server tells one filter as `filter_subject`, several as `filter_subjects`."""
    plain = dict(config)
    if one := plain.pop("filter_subject", None):
        plain["filter_subjects"] = [one]
    return plain


async def _names(admin: Client, call: str, field: str) -> list[str]:
    names: list[str] = []
    while True:
        page = await _call(admin, call, {"offset": len(names)})
        names += page.get(field) or []
        if len(names) >= page.get("total", 0) or not page.get(field):
            return names


async def _call(admin: Client, call: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    answer: dict[str, Any] = json.loads((await admin.request(f"$JS.API.{call}", data, timeout=10)).data)
    if error := answer.get("error"):
        if error.get("err_code") == _NO_SPACE:
            raise ConfigError(
                "DISK_SPACE",
                f"{call}: the disk has too little free space: the streams reserve their bounds (max_bytes) of the three "
                "quarters of it that the broker takes",
            )
        raise ConfigError("JETSTREAM", f"{call}: {error.get('description')} ({error.get('err_code')})")
    return answer
