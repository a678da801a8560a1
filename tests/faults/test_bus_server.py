"""The embedded broker: what it refuses to start with, how it dies, what it keeps, and what provisioning repairs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.errors import Error as NatsError

from tallystick.infra.embedded import MIN_FREE_BYTES
from tallystick.infra.nats.claims import Accounts
from tallystick.infra.nats.provision import durable_config, provision, provision_state, stream_config
from tallystick.infra.nats.server import EmbeddedServer, ServerConfig, ServerStopped, render_config
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.seal import max_payload
from tests.support.bus import Connection, TestBus, now_s, running_bus
from tests.support.world import key, seed

MINE = "order.intent.alpha.paper.XRP-ETH"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[TestBus]:
    with running_bus(tmp_path) as running:
        yield running


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[TestBus]:
    """A broker that is not started; stopped if a test does start it."""
    made = TestBus(tmp_path)
    yield made
    made.server.stop()


def config(bus: TestBus, **changes: Any) -> ServerConfig:
    return msgspec.structs.replace(bus.server._config, **changes)


# ---------------------------------------------------------------- starting


def test_a_taken_port_is_named_and_nothing_is_written(idle: TestBus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"PORT_TAKEN: port {port} on 127.0.0.1 is taken"):
            EmbeddedServer(config(idle, port=port)).start()
    assert not list((idle.folder / "jetstream").iterdir())


def test_a_full_disk_is_named_and_nothing_is_written(idle: TestBus, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=MIN_FREE_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"DISK_FULL: .* bytes are free at .*jetstream"):
        idle.server.start()
    assert not (idle.folder / "jetstream").exists()


def test_a_store_has_one_server(bus: TestBus) -> None:
    with pytest.raises(ConfigError, match=rf"RUNNING: .*jetstream/starter.pid is held by process {os.getpid()}"):
        EmbeddedServer(config(bus, port=0)).start()
    bus.server.check()


def test_a_missing_server_is_named(idle: TestBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(ConfigError, match="NATS_SERVER: no nats-server"):
        idle.server.start()


@pytest.mark.parametrize("held", range(92, 97))
def test_whoever_holds_many_files_can_start_it(idle: TestBus, held: int) -> None:
    """The descriptors that are handed over then have the very numbers that the server is told."""
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(Path(os.devnull).open("rb"))
            if file.fileno() >= held:
                break
        idle.server.start()
        idle.server.check()


def test_what_the_server_refuses_is_passed_on(idle: TestBus) -> None:
    refused = EmbeddedServer(config(idle, key_pem=b"no key"))
    with pytest.raises(ConfigError, match=r"NATS_START: the server refused to start: .*X509"):
        refused.start()
    with pytest.raises(ServerStopped, match="NATS_DIED"):
        refused.check()


@pytest.mark.parametrize("path", ['a"b', "a\nb", "a\\b", "a\0b"])
def test_a_path_cannot_end_its_quotes(idle: TestBus, path: str) -> None:
    with pytest.raises(ConfigError, match="NATS_CONFIG"):
        render_config(config(idle, folder=Path(path)), port=0, key_file="x")


def test_the_store_needs_its_whole_key(idle: TestBus) -> None:
    with pytest.raises(ConfigError, match="STORE_KEY"):
        render_config(config(idle, store_key=b"short"), port=0, key_file="x")


def test_no_secret_reaches_arguments_environment_files_or_text(bus: TestBus) -> None:
    proc = Path(f"/proc/{bus.server.pid}")
    pem = bus.server._config.key_pem
    secrets = [seed("store"), seed("store").hex().encode(), pem.splitlines()[1]]
    shown = [(proc / "cmdline").read_bytes(), (proc / "environ").read_bytes(), repr(bus.server._config).encode()]
    shown += [f.read_bytes() for f in bus.folder.rglob("*") if f.is_file()]
    # What it was started with can be read through no descriptor while it runs.
    shown += [fd.read_bytes() for fd in (proc / "fd").iterdir() if "memfd" in str(fd.readlink())]
    assert shown[-1] == b"", "no file in memory"
    for secret in secrets:
        assert not any(secret in text for text in shown)


async def test_the_store_does_not_open_with_another_key(bus: TestBus) -> None:
    async with bus.connected("strategy-alpha") as (client,):
        await client.request(MINE, b"x")
    bus.server.stop()
    other = EmbeddedServer(config(bus, store_key=seed("another store")))
    with contextlib.suppress(ConfigError):
        other.start()
    other.stop()
    assert "Error decrypting" in (bus.folder / "nats.log").read_text()


# ---------------------------------------------------------------- dying and coming back


async def test_what_was_acknowledged_survives_kill_9_and_the_port_stays(bus: TestBus) -> None:
    port = bus.server.port

    async def write() -> int:
        async with bus.connected("strategy-alpha") as (client,):
            answers = [json.loads((await client.request(MINE, b"%d" % i)).data) for i in range(20)]
            return int(answers[-1]["seq"])

    last = await write()
    bus.server.kill()
    with pytest.raises(ServerStopped, match=r"NATS_DIED.*exit code -9"):
        bus.server.check()
    bus.server.start()
    bus.server.check()
    assert bus.server.port == port

    async def look() -> dict[str, tuple[int, int]]:
        async with bus.connected("root") as (root,):
            return await bus.stored(root)

    assert (await look())["ORDERS"] == (last, last)


@pytest.mark.parametrize("pushed", [True, False], ids=["pushed before", "given at the start"])
async def test_a_restart_undoes_no_revocation(bus: TestBus, pushed: bool) -> None:
    name, session = "strategy-alpha", key("session strategy-alpha")
    token = bus.token(name, session)
    # The account tokens that the broker was started with are a second older.
    later = msgspec.structs.replace(bus.validity, issued_s=now_s())
    revoked = bus.accounts.component(name, later, {session.public: now_s()})

    async def login() -> None:
        await (await bus.connect(token, session, inbox=f"_INBOX_{name}", certificate=name)).close()

    await login()
    if pushed:
        async with bus.connected("system") as (system,):
            answer = json.loads((await system.request("$SYS.REQ.CLAIMS.UPDATE", revoked.encode())).data)
            assert answer["data"]["code"] == 200
    bus.server.kill()
    if not pushed:
        given = bus.tokens() | {encode_key("A", key(f"account {name}").public): revoked}
        bus.server._config = config(bus, accounts=given)
    bus.server.start()
    with pytest.raises(NatsError, match="Authorization Violation"):
        await login()


async def test_a_client_cannot_make_the_broker_look_broken(bus: TestBus, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = "x\n[1] 2026/11/22 16:45:09.938447 [ERR] JetStream file resource limits exceeded for server\n"
    connect = Connection._connect_command

    def lying(client: Connection) -> bytes:
        said = json.loads(connect(client).partition(b" ")[2])
        return b"CONNECT " + json.dumps(said | {"name": lie, "lang": lie, "version": lie}).encode() + b"\r\n"

    monkeypatch.setattr(Connection, "_connect_command", lying)

    async with bus.connected("strategy-alpha") as (client,):
        await client.publish("x.y", b"")
        await client.refused()
    assert b"resource limits exceeded" in (bus.folder / "nats.log").read_bytes()
    bus.server.check()


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_store_that_is_lost_is_seen_whatever_happens_to_the_log(bus: TestBus, how: str) -> None:
    log = bus.folder / "nats.log"
    bus.server.check()
    written = os.open(log, os.O_WRONLY | os.O_APPEND)  # as the server does
    try:
        if how == "removed":
            log.unlink()
        else:
            os.truncate(log, 0)
        bus.server.check()
        os.write(written, b"[1] 2026/01/01 00:00:00.000000 [ERR] JetStream out of resources, will be DISABLED\n")
        with pytest.raises(ServerStopped, match="NATS_STORE"):
            bus.server.check()
    finally:
        os.close(written)


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)):
        pytest.skip("a small file system can be mounted by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _small(bus: TestBus) -> None:
    """Bounds that fit on a small disk."""
    streams = {n: msgspec.structs.replace(s, max_bytes=min(s.max_bytes, 200_000)) for n, s in bus.bus.streams.items()}
    components = {n: msgspec.structs.replace(c, state_bytes=0) for n, c in bus.bus.components.items()}
    bus.bus = msgspec.structs.replace(bus.bus, streams=streams, components=components)


@pytest.mark.parametrize("outside", [True, False], ids=["filled by others", "filled by the broker"])
async def test_a_disk_that_fills_up_refuses_publishes_is_seen_and_a_restart_heals(
    tmp_path: Path, outside: bool
) -> None:
    with small_disk(tmp_path / "jetstream", 24):
        bus = TestBus(tmp_path)
        _small(bus)
        try:
            bus.server.start()
            await _fill(bus, outside=outside)
            with pytest.raises(ServerStopped, match="NATS_STORE: the broker lost its store"):
                bus.server.check()
            (tmp_path / "jetstream" / "filler").unlink(missing_ok=True)
            assert mount("-o", "remount,size=64m", str(tmp_path / "jetstream"))
            bus.server.stop()
            bus.server.start()
            bus.server.check()
            await _publish_one(bus)
        finally:
            bus.server.stop()


async def _publish_one(bus: TestBus) -> None:
    async with bus.connected("strategy-alpha") as (client,):
        assert "error" not in json.loads((await client.request(MINE, b"after")).data)


async def _fill(bus: TestBus, *, outside: bool) -> None:
    await bus.provision()
    if outside:
        filler = bus.folder / "jetstream" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))
    async with bus.connected("strategy-alpha") as (client,):
        stored, size = 0, max_payload("order.intent") - 512
        for _ in range(1500):
            try:
                answer = json.loads((await client.request(MINE, os.urandom(size), timeout=0.5)).data)
            except (TimeoutError, NatsError):
                break
            if "error" in answer:
                assert answer["error"]["err_code"] == 10023
                break
            stored = answer["seq"]
        else:
            pytest.fail(f"{stored} messages fit on a disk of 24 MB")


# ---------------------------------------------------------------- provisioning


async def _call(root: Connection, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await root.request(f"$JS.API.{call}", json.dumps(body or {}).encode())).data)
    return answer


async def test_provisioning_twice_changes_nothing(bus: TestBus) -> None:
    async with bus.connected("admin") as (admin,):
        done = await provision(admin, bus.bus)
        assert (done.created, done.updated, done.removed) == ((), (), ())
    admin = await bus.connect_admin("streams")
    done = await provision_state(admin, bus.component("streams").state_bytes)
    assert (done.created, done.updated) == ((), ())
    await admin.close()


async def test_streams_have_the_durability_that_the_topology_says(bus: TestBus) -> None:
    async with bus.connected("root") as (root,):
        for name, spec in bus.bus.streams.items():
            have = (await _call(root, f"STREAM.INFO.{name}"))["config"]
            assert have.get("persist_mode", "default") == ("async" if spec.durability == "async" else "default")
            assert (have["deny_delete"], have["deny_purge"]) == (spec.locked, spec.locked)
            for off in (
                "allow_direct",
                "allow_rollup_hdrs",
                "allow_msg_ttl",
                "allow_msg_schedules",
                "allow_msg_counter",
            ):
                assert not have.get(off), (name, off)
            for off in ("allow_atomic", "allow_batched", "republish", "mirror", "sources", "subject_transform"):
                assert not have.get(off), (name, off)
            assert have["compression"] == "none"


async def test_what_an_insider_changed_in_a_stream_is_set_right(bus: TestBus) -> None:
    async with bus.connected("root", "admin") as (root, admin):
        config = stream_config(bus.bus, "MARKET")
        reroute = {"republish": {"src": "md.>", "dest": "elsewhere.>"}, "allow_rollup_hdrs": True, "max_bytes": -1}
        assert "error" not in await _call(root, "STREAM.UPDATE.MARKET", config | reroute)
        done = await provision(admin, bus.bus)
        assert (done.created, done.updated, done.removed) == ((), ("MARKET",), ())
        have = (await _call(root, "STREAM.INFO.MARKET"))["config"]
        assert not have.get("republish")
        assert not have["allow_rollup_hdrs"]
        assert have["max_bytes"] == bus.bus.streams["MARKET"].max_bytes


async def test_a_durable_that_is_not_in_the_topology_goes_and_a_changed_one_is_set_right(bus: TestBus) -> None:
    async with bus.connected("root", "admin") as (root, admin):
        spy = {
            "name": "spy",
            "durable_name": "spy",
            "ack_policy": "none",
            "deliver_subject": "order.intent.alpha.x.y",
        }
        made = await _call(root, "CONSUMER.CREATE.SECURITY.spy", {"stream_name": "SECURITY", "config": spy})
        assert "error" not in made
        wide = (await _call(root, "CONSUMER.INFO.ORDERS.strategy-alpha"))["config"] | {"filter_subjects": ["order.>"]}
        made = await _call(root, "CONSUMER.CREATE.ORDERS.strategy-alpha", {"stream_name": "ORDERS", "config": wide})
        assert "error" not in made
        done = await provision(admin, bus.bus)
        assert (done.created, done.updated, done.removed) == ((), ("ORDERS/strategy-alpha",), ("SECURITY/spy",))
        have = (await _call(root, "CONSUMER.INFO.ORDERS.strategy-alpha"))["config"]
        assert tuple(have["filter_subjects"]) == bus.component("strategy-alpha").reads["ORDERS"]


async def test_durables_whose_state_lay_on_the_disk_are_made_anew(bus: TestBus) -> None:
    """As those of a deployment that an earlier release made."""
    async with bus.connected("root", "admin") as (root, admin):
        config = durable_config("strategy-alpha", bus.component("strategy-alpha").reads["ORDERS"])
        await _call(root, "CONSUMER.DELETE.ORDERS.strategy-alpha")
        filed = {"stream_name": "ORDERS", "config": config | {"mem_storage": False}}
        assert "error" not in await _call(root, "CONSUMER.CREATE.ORDERS.strategy-alpha", filed)
        done = await provision(admin, bus.bus)
        assert (done.created, done.updated, done.removed) == ((), ("ORDERS/strategy-alpha",), ())
        assert (await _call(root, "CONSUMER.INFO.ORDERS.strategy-alpha"))["config"]["mem_storage"]


async def test_a_delivery_writes_nothing_to_the_disk_and_a_restarted_broker_has_its_durables_when_it_is_provisioned(
    bus: TestBus,
) -> None:
    assert not [path for path in (bus.folder / "jetstream").rglob("obs/*") if path.is_dir()]
    bus.server.kill()
    bus.server.start()
    async with bus.connected("admin") as (admin,):
        done = await provision(admin, bus.bus)
        assert "ORDERS/strategy-alpha" in done.created
        assert (done.updated, done.removed) == ((), ())


async def test_a_stream_that_nobody_knows_is_refused_and_kept(bus: TestBus) -> None:
    async with bus.connected("root", "admin") as (root, admin):
        steal = {"name": "STEAL", "storage": "file", "sources": [{"name": "ORDERS"}]}
        # The account allows the streams of the topology and no more, even to its own root.
        limited = await _call(root, "STREAM.CREATE.STEAL", steal)
        assert limited["error"]["description"] == "maximum number of streams reached"
        await _call(root, "STREAM.DELETE.SIGNALS")
        assert "error" not in await _call(root, "STREAM.CREATE.STEAL", steal)
        with pytest.raises(ConfigError, match=r"STREAM_UNKNOWN: .*STEAL"):
            await provision(admin, bus.bus)
        assert (await _call(root, "STREAM.INFO.STEAL"))["config"]["name"] == "STEAL"


async def test_a_stream_that_cannot_be_set_right_is_refused_with_what_differs(bus: TestBus) -> None:
    async with bus.connected("root", "admin") as (root, admin):
        await _call(root, "STREAM.DELETE.SIGNALS")
        wrong = {**stream_config(bus.bus, "SIGNALS"), "persist_mode": "async"}
        assert "error" not in await _call(root, "STREAM.CREATE.SIGNALS", wrong)
        with pytest.raises(
            ConfigError, match=r"STREAM_DIFFERS: stream SIGNALS differs in .*persist_mode=async instead of None"
        ):
            await provision(admin, bus.bus)


async def test_bounds_that_the_disk_cannot_hold_are_named(bus: TestBus) -> None:
    huge = msgspec.structs.replace(bus.bus.streams["MARKET"], max_bytes=1 << 60)
    wide = msgspec.structs.replace(bus.bus, streams=bus.bus.streams | {"MARKET": huge})
    async with bus.connected("admin") as (admin,):
        with pytest.raises(ConfigError, match="too little free space"):
            await provision(admin, wide)


def test_a_component_without_keys_is_refused(idle: TestBus) -> None:
    keys = msgspec.structs.replace(idle.keys, components={})
    with pytest.raises(ConfigError, match="BUS_KEYS: no account and role keys for audit, authority"):
        Accounts(idle.bus, keys, key("nats operator signing"), key("activation"))
    with pytest.raises(ConfigError, match="BUS_KEYS: the activation key"):
        Accounts(idle.bus, idle.keys, key("nats operator signing"), key("thief"))
