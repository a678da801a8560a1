"""The one thread in which a PKCS#11 module is used.

python-pkcs11 initialises modules without locking and releases the GIL, and modules keep state for each thread (SoftHSM leaves
OpenSSL's errors behind, which Python's ssl would take for its own): everything that touches a module runs here, one call
at a time, whoever asks.  A call costs its caller two switches of threads, some 20 µs.

A module that does not answer within `ANSWER_S` is given up on: who asked is told, and whoever asks while it still hangs is
told at once.  The thread is a daemon's: a process can end while its module hangs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from tallystick.schemas.errors import ConfigError

# Smart cards take half a second for a signature, and some ten for a key of their own making.
ANSWER_S: Final = 30.0

T = TypeVar("T")


class _Call(Generic[T]):
    """One call: `run` by the thread, `wait` and then `result` by who asks."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as exc:  # noqa: BLE001 - it is raised where it was asked for
            self._error = exc
        self._done.release()

    def wait(self, seconds: float) -> bool:
        return self._done.acquire(timeout=seconds)

    @property
    def waits(self) -> bool:
        """Whether it has not been answered; for a call that nobody waits for any more."""
        return self._done.locked()

    def result(self) -> T:
        # Taken out: the error's traceback holds this frame, and nothing should wait for the collector.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._values[0]


class Owner:
    """See the module docstring.  `answer_s` is for tests."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._calls: queue.SimpleQueue[_Call[Any]] = queue.SimpleQueue()
        # Guarantees: one thread is started.  A child of a fork has none of its parent's.
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # The call that was given up on last: while the thread has not answered it, it answers nobody.
        self._late: _Call[Any] | None = None

    def ask(self, what: str, function: Callable[[], T]) -> T:
        """`function()`, run in the thread; `what` names it in errors.  Raises what it raises, and `ConfigError`."""
        thread = self._thread
        if threading.current_thread() is thread:
            return function()
        if thread is None or not thread.is_alive():
            self._start()
        late = self._late
        if late is not None and late.waits:
            raise ConfigError("HSM_HANGS", f"{what}: the module does not answer an earlier call; is the HSM reachable?")
        call = _Call(function)
        self._calls.put(call)
        if not call.wait(self._answer_s):
            self._late = call
            raise ConfigError("HSM_HANGS", f"{what}: no answer within {self._answer_s:.0f} s; is the HSM reachable?")
        return call.result()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._calls, self._late = queue.SimpleQueue(), None
                self._thread = threading.Thread(target=self._run, args=(self._calls,), name="pkcs11", daemon=True)
                self._thread.start()

    @staticmethod
    def _run(calls: queue.SimpleQueue[_Call[Any]]) -> None:
        while True:
            calls.get().run()
