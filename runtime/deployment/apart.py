"""A user of its own for a process that holds what no other may reach: custody, where root starts it.

- The user is a number, the same at each start of a deployment in its place, from a range that systemd's table of users
  leaves unused (0x70000000 to 0x7FFFFFFF): nobody has to be added.  It owns the component's token, state, certificate,
  log and its folder below `DIR/run`, closed to others; what it has to read besides (configuration, trust root, CA), its
  group may read.
- The process starts as root, makes this so, and gives up root for good before it opens anything: files that were made
  as root meanwhile (by `init`, `admit`, a restored backup) are handed over at each start.
- Where that cannot be (no root; folder, Python or token library behind a folder that is root's alone; a container without
  such users), the process shares its user, as all others do, and says so.

The component is not trusted with the files of others: an attacker who controls it can at most write below what it owns,
and put files of new names beside certificates.

Source: setresuid(2), prctl(2); https://systemd.io/UIDS-GIDS.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tallystick.infra.child import harden
from tallystick.runtime.deployment.folder import APART, CONFIG_NAME, Deployment
from tallystick.runtime.keys.uri import TokenUri

# Whose word this process takes on a socket: whoever started it, as which the other processes run.
STARTED_AS: Final = os.geteuid()
FIRST_UID: Final = 0x70000000
UIDS: Final = 0x10000000
# Closed to all but owner and group; with the sticky bit, in which nobody removes what is another's.
_PASS, _READ, _SHARE, _FILE = 0o710, 0o750, stat.S_ISVTX | 0o770, 0o640


class _Standing:
    """What became of it in this process."""

    text = ""


def standing() -> str:
    """Whose user this process runs as, for people; empty before `enter` and where none of its own is meant."""
    return _Standing.text


def uid_of(deployment: Deployment) -> int:
    """The number of the deployment's own user."""
    place = f"{deployment.name}\0{deployment.directory.resolve()}".encode()
    return FIRST_UID + int.from_bytes(hashlib.sha256(place).digest()[:4]) % UIDS


def enter(deployment: Deployment, component: str) -> None:
    """Become the component's own user, for good, if it has one and that can be.  Called while there is one thread.

    Raises `OSError` where a file cannot be handed over: half a user is none.
    """
    if component not in APART:
        return
    uid = uid_of(deployment)
    why = _why_not(deployment, uid, component)
    if why:
        _Standing.text = f"shares its user with the other processes: {why}"
        return
    _hand_over(deployment, component, uid)
    # Its orders go first as those of root would (`scheduling`), where root may give that right.
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (1, 1))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The kernel forgets it with the change of user, and the signal at the parent's end as well: our caller knows of that.
    harden()
    _Standing.text = f"user {uid} of its own"


def _why_not(deployment: Deployment, uid: int, component: str) -> str:
    if STARTED_AS != 0:
        return "root did not start it"
    # What is imported and loaded later: as that user will find it.
    places = [deployment.directory.parent]
    places += [Path(place) for place in sys.path if place]
    token = deployment.token(component)
    if isinstance(token, TokenUri):
        places.append(token.module_path)
    places = [place for place in places if place.exists()]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            code = next((number for number, place in enumerate(places, 10) if not _reads(place, number == 10)), 0)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 10:
        return f"{places[code - 10]} is closed to others"
    return "" if code == 0 else f"no process can have the user {uid} here"


def _reads(place: Path, passing: bool) -> bool:
    """Whether we may use what is there; `passing`: merely go through it."""
    return os.access(place, os.X_OK if passing else os.R_OK)


def _hand_over(deployment: Deployment, component: str, uid: int) -> None:
    root, state, token = deployment.directory, deployment.state(component), deployment.token(component)
    seat, log = deployment.seat(component), deployment.log(component)
    for folder, mode in (
        (root, _PASS),
        (deployment.run, _PASS),
        (log.parent, _PASS),
        (state.parent, _PASS),
        (deployment.tokens, _PASS),
        (deployment.pki, _SHARE),
    ):
        folder.mkdir(mode=0o700, exist_ok=True)
        _give(folder, -1, uid, mode)
    for path in (root / CONFIG_NAME, deployment.ca, deployment.issuing_ca):
        _give(path, -1, uid, _FILE)
    for path in (*_below(deployment.trust), *_below(deployment.policy)):
        _give(path, -1, uid, _READ if path.is_dir() else _FILE)
    for folder in (seat, state):
        folder.mkdir(mode=0o700, exist_ok=True)
    log.touch(mode=0o600)
    # A token of another module has an owner of its own.
    files = () if isinstance(token, TokenUri) else _below(token)
    for path in (deployment.identity(component), log, *_below(seat), *_below(state), *files):
        _give(path, uid, uid, None)


def _give(path: Path, uid: int, gid: int, mode: int | None) -> None:
    """Change owner and mode of what is there, by its descriptor.

    Where the component may write it may have made links: they are given as such, never followed, and a file that has a
    second name could be another's.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "a file of custody's that has a second name elsewhere", str(path))
        if stat.S_ISLNK(found.st_mode):
            os.chown(path, uid, gid, follow_symlinks=False)
            return
        os.chown(f"/proc/self/fd/{fd}", uid, gid)
        if mode is not None:
            Path(f"/proc/self/fd/{fd}").chmod(mode)
    finally:
        os.close(fd)


def _below(folder: Path) -> Iterator[Path]:
    yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))
