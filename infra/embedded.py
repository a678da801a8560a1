"""What the embedded servers, the broker and the vault, have in common: one process, from its start to its end.

- Configuration and TLS key reach it through memory files (`/proc/self/fd/N`), never through a file or the environment.
  They are handed over once the process is closed to others of its user (`child`), and hold something only while it reads.
- It ends when whoever started it was killed (`child`), and gets no variable of its starter's environment but `PATH`.
- It alone owns its folder, and one starter watches it: the next start waits for a process that was left, and ends it.
- A renewal gives it another certificate while it runs: the files are filled once more, and it is asked to read them (SIGHUP).
- One thread at a time starts, renews or ends it: a start whose caller went away is finished before the process is ended,
  and what a process leaves is cleared away once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Generic, TypeVar

import msgspec

from tallystick.infra import child
from tallystick.infra.lockfile import Lockfile, end_owner
from tallystick.schemas.errors import ConfigError, TallystickError

START_TIMEOUT_S: Final = 20.0
RELOAD_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01
# In the server's folder, held by the server that runs on it and by who started that.
OWNER: Final = "server.pid"
WATCH: Final = "starter.pid"
ORPHAN_S: Final = 5.0
# Where the program finds what it is handed; what a kind of server needs besides comes after these two.
CONFIG_FD: Final = child.FIRST_FD
KEY_FD: Final = child.FIRST_FD + 1
MORE_FD: Final = child.FIRST_FD + 2
# A server that starts with less stops soon after: better not to start, with a reason.
MIN_FREE_BYTES: Final = 16 * 1_048_576


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every server needs: `key_pem` is its private key, unencrypted, in memory; `port` 0 takes a free one."""

    name: str
    ca_file: Path
    cert_file: Path
    key_pem: bytes
    folder: Path
    run_dir: Path
    log_file: Path
    host: str = "127.0.0.1"
    port: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, host={self.host!r}, port={self.port})"


C = TypeVar("C", bound=ServerConfig)


class MemoryFiles:
    """`count` files in memory that hold something only while they are `filled`."""

    def __init__(self, name: str, count: int = 2) -> None:
        self._fds = [os.memfd_create(name, os.MFD_CLOEXEC) for _ in range(count)]

    @contextlib.contextmanager
    def filled(self, *contents: bytes) -> Iterator[list[int]]:
        """The descriptors, of files that hold `contents` until the block ends."""
        try:
            for fd, data in zip(self._fds, contents, strict=True):
                os.pwrite(fd, data, 0)
            yield self._fds
        finally:
            # Whoever was handed the descriptors has them still.
            for fd in self._fds:
                os.ftruncate(fd, 0)

    def close(self) -> None:
        """Empty them and let go of them."""
        for fd in self._fds:
            os.ftruncate(fd, 0)
            os.close(fd)
        self._fds = []


class Server(ABC, Generic[C]):
    """One server process.  Owns it from `start` to `stop`; a stopped one can be started again on its port."""

    # What people call it, and what its files in memory are called.
    WHO: ClassVar[str]
    NAME: ClassVar[str]
    VARIABLES: ClassVar[Mapping[str, str]]

    def __init__(self, config: C) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._watch: Lockfile | None = None
        # What the process reads its configuration and its key from: empty but while it reads.
        self._files: MemoryFiles | None = None
        self._text = ""
        # Read through the descriptor that the server writes to: a log that somebody removes or moves is still read.
        self._log_fd: int | None = None
        self._log_start = 0
        self.port = config.port

    # -- what a kind of server says of itself ---------------------------------------------------

    @abstractmethod
    def _program(self) -> list[str]:
        """Its binary and arguments.  Raises `ConfigError`."""

    @abstractmethod
    def _render(self) -> str:
        """Its configuration's text, for `port`, with the key at `KEY_FD`.  Raises `ConfigError`."""

    @abstractmethod
    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it takes connections.  Raises `ConfigError` where it ends instead, or does not in time."""

    @abstractmethod
    def _not_running(self, text: str) -> TallystickError:
        """What is raised where its process is not running."""

    @abstractmethod
    def _not_started(self, text: str) -> ConfigError:
        """What is raised where it cannot be started."""

    @abstractmethod
    def _not_reloaded(self, text: str) -> ConfigError:
        """What is raised where it does not take a certificate."""

    def _folders(self) -> Sequence[Path]:
        """What it needs besides its own folder."""
        return ()

    @contextlib.contextmanager
    def _more(self) -> Iterator[list[int]]:
        """What it is handed besides configuration and key, from `MORE_FD` on.  Raises `ConfigError`."""
        yield []

    def _last_words(self) -> str:
        """Where to read why it ended."""
        return f"see {self._config.log_file}"

    def _forget(self, pid: int) -> None:
        """Clear away what the process `pid`, which has ended, left."""

    # -- start and stop -------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id.  Raises what `_not_running` makes before `start`."""
        if self._process is None:
            raise self._not_running(f"{self.WHO} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it takes connections.

        It ends with the thread that calls this: one that lives as long as the process, or as its event loop.
        Raises `ConfigError` for a full disk, a taken port or a configuration that the server refuses.
        """
        with self._lock:
            self._start()

    def _start(self) -> None:
        config = self._config
        check_space(config.folder, self.WHO)
        for folder in (config.folder, *self._folders(), config.run_dir, config.log_file.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._text = self._render()
        self._drop_files()
        self._files = MemoryFiles(self.NAME)
        try:
            if self._watch is None:
                self._watch = Lockfile.take(config.folder / WATCH)
            end_owner(config.folder / OWNER, ORPHAN_S)
            lock = Lockfile.take(config.folder / OWNER)
            try:
                # If we are killed here, a server that has no name yet ends with us.
                lock.name(0)
                if self.port:
                    check_free(config.host, self.port)
                with self._files.filled(self._text.encode(), config.key_pem) as fds, self._more() as more:
                    self._launch((*fds, *more, lock.fd))
                lock.name(self.pid)
            except BaseException:
                lock.release()
                raise
            # The server has the descriptor: the lock is its own from now on.
            lock.hand_on()
        except BaseException:
            self._unwatch()
            raise

    def _launch(self, fds: Sequence[int]) -> None:
        config = self._config
        program, *arguments = self._program()
        copy = config.run_dir / Path(program).name
        try:
            program = child.unreadable(program, copy)
        except OSError as exc:
            raise self._not_started(f"cannot copy {self.WHO}'s program to {copy}: {exc.strerror}") from exc
        try:
            self._close_log()
            self._log_fd = os.open(config.log_file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._log_start = os.fstat(self._log_fd).st_size
            self._process = launch([program, *arguments], fds, self._log_fd, self.VARIABLES)
            self._await(self._process)
        except BaseException:
            self.stop(0.0)
            raise
        finally:
            copy.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise what `_not_running` makes if the process ended; cheap enough to ask several times a second."""
        self._runs()

    def _runs(self) -> None:
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise self._not_running(f"{self.WHO} is not running (exit code {code}): {self._last_words()}")

    def _renew(self, key_pem: bytes, shown: Callable[[], bool]) -> None:
        """Show the certificate that `cert_file` holds now, whose key is `key_pem`, to whoever connects from now on.

        `shown` tells whether it does.  A start later on shows it, too.  Raises what `_not_running` makes where nothing
        runs, and `ConfigError` where the server does not take it; it shows the old one then.
        """
        with self._lock:
            self._config = msgspec.structs.replace(self._config, key_pem=key_pem)
            self._runs()
            if self._files is None:
                raise self._not_running(f"{self.WHO} was stopped: its next start shows the certificate")
            with self._files.filled(self._text.encode(), key_pem):
                os.kill(self.pid, signal.SIGHUP)
                deadline = time.monotonic() + RELOAD_TIMEOUT_S
                while not shown():
                    self._runs()
                    if time.monotonic() > deadline:
                        raise self._not_reloaded(f"{self.WHO} did not read its certificate: {self._config.log_file}")
                    time.sleep(POLL_S)

    def stop(self, timeout: float = 15.0) -> None:
        """End it by its process id: SIGTERM, after `timeout` seconds SIGKILL.  Does nothing if it is not running."""
        with self._lock:
            if self._process is not None:
                stop(self._process, timeout)
                self._forget(self._process.pid)
            self._drop_files()
            self._close_log()
            self._unwatch()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        # Whoever has the lock waits for this process.
        if self._process is not None:
            self._process.kill()
        self.stop(0.0)

    def _log(self, start: int) -> bytes:
        """What its log holds from there on."""
        if self._log_fd is None:
            return b""
        return os.pread(self._log_fd, max(0, self._log_size() - start), start)

    def _log_size(self) -> int:
        return 0 if self._log_fd is None else os.fstat(self._log_fd).st_size

    def _close_log(self) -> None:
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None

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

    It ends by itself, and is killed where that takes too long.  Raises `Held` for one that somebody watches.
    """
    if not folder.exists():
        return 0
    with Lockfile.take(folder / WATCH):
        return end_owner(folder / OWNER, ORPHAN_S)


def launch(
    program: Sequence[str], fds: Sequence[int], log_fd: int, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `program`, which ends with this thread, and finds `fds` from `child.FIRST_FD` on.

    A process that ends at once is for the caller to find, with its reason in the log.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), str(int(signal.SIGTERM)),
                    str(theirs.fileno()), *program,
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env={"PATH": os.environ.get("PATH", ""), **variables},
                # Ctrl-C in the terminal must reach the supervisor alone, which stops things in order.
                start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError):
            child.hand_over(ours, fds, START_TIMEOUT_S)
    return process


def stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    """End it by its process id: SIGTERM, after `timeout` seconds SIGKILL.  Does nothing if it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            # What was acknowledged is on disk; recovery at the next start is the same code as after SIGTERM.
            process.kill()
            process.wait()


def check_space(folder: Path, who: str) -> None:
    """Raise `ConfigError` where too little is free for `who` to start."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            "DISK_FULL", f"{free:,} bytes are free at {folder}, {who} needs {MIN_FREE_BYTES:,}: free some space"
        )


def taken(host: str, port: int) -> ConfigError:
    """The error for a port that another program has."""
    return ConfigError(
        "PORT_TAKEN", f"port {port} on {host} is taken by another program: stop that one or choose another port"
    )


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def await_tls(process: subprocess.Popen[bytes], host: str, port: int, refused: Callable[[], ConfigError]) -> None:
    """Wait until `process` shakes hands.  Raises what `refused` makes where it ends instead, or does not in time.

    That it takes connections is not enough: a server may listen before it has read its key.
    """
    # Whose certificate it is, is for its clients to look at: nothing is said here.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=1) as plain, tls.wrap_socket(plain):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise refused() from None
        time.sleep(POLL_S)


def check_free(host: str, port: int) -> None:
    """Raise `ConfigError` where another program has the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise taken(host, port) from exc
