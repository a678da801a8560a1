"""Looks for secrets where they might be: in memory, environment, arguments and descriptors of processes, and in files.

A secret is looked for in every form in which programs carry text: as it is, in UTF-16, hex, base64 at each alignment,
escaped for a URL or for JSON.  What is found is told as (place, name of the secret), never with the secret.

Memory is that of all writable mappings: what else a process has mapped is files, which are looked through themselves.
Reading another process's memory takes root.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

CHUNK = 1 << 22
# Below it something that is no secret may look the same.
MIN_BYTES = 8
GREP = ("grep", "--fixed-strings", "--text", "--only-matching")
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}


def forms(secret: bytes) -> set[bytes]:
    """The byte strings that give the secret away."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    with contextlib.suppress(UnicodeDecodeError):
        text = secret.decode("utf-8")
        found |= {text.encode(f"utf-16-{order}") for order in ("le", "be")}
        found |= {quote(text, safe=safe).encode() for safe in ("", "/")} | {quote_plus(text).encode()}
        found |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Whatever stands around it: the letters that depend on the secret alone.
            encoded = encode(bytes(before) + secret)
            first = (before * 8 + 5) // 6
            found.add(encoded[first : (before + len(secret)) * 8 // 6])
    return found


class Scanner:
    """Finds any of `secrets`: its name to its bytes."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._names: dict[bytes, str] = {}
        for name, secret in secrets.items():
            if len(secret) < MIN_BYTES:
                raise ValueError(f"{name} is too short to be looked for")
            for form in forms(secret):
                if b"\n" in form:
                    raise ValueError(f"{name} holds a line's end")
                self._names[form] = name
        self._patterns = os.memfd_create("forms")
        weakref.finalize(self, os.close, self._patterns)
        os.write(self._patterns, b"\n".join(self._names))

    def scan(self, chunks: Iterable[bytes]) -> set[str]:
        """The names of the secrets in one stretch of bytes."""
        # grep looks for hundreds of strings at once, at a gigabyte a second: Python's search would take minutes.
        with subprocess.Popen(
            [*GREP, f"--file=/proc/self/fd/{self._patterns}"],
            pass_fds=(self._patterns,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as grep:
            assert grep.stdin is not None
            assert grep.stdout is not None
            # What is found is short: it never fills the pipe while we still write.
            for chunk in chunks:
                grep.stdin.write(chunk)
            grep.stdin.close()
            said = grep.stdout.read()
        if grep.returncode > 1:
            raise RuntimeError(f"grep failed with {grep.returncode}")
        return {self._names[form] for form in said.split(b"\n") if form}

    def process(self, pid: int) -> set[tuple[str, str]]:
        """Secrets of a process, by place: memory, environ, cmdline, fd."""
        place = Path("/proc", str(pid))
        found = {("memory", name) for name in self.scan(memory(pid))}
        for what in ("environ", "cmdline"):
            found |= {(what, name) for name in self.scan([(place / what).read_bytes()])}
        for link in (place / "fd").iterdir():
            # Memory files and deleted ones: others are in a folder that is looked through.
            with contextlib.suppress(OSError):
                target = str(link.readlink())
                if target.startswith("/memfd:") or target.endswith(" (deleted)"):
                    found |= {("fd", name) for name in self.scan([link.read_bytes()])}
        return found

    def files(self, folder: Path) -> set[tuple[str, str]]:
        """Secrets in the files below `folder`, by path from there; what stands in a path counts as well."""
        found = set()
        for path in folder.rglob("*"):
            where = str(path.relative_to(folder))
            found |= {(where, self._names[form]) for form in self._names if form in os.fsencode(where)}
        done = self._grep("--with-filename", "--null", "--recursive", "--devices=skip", str(folder))
        for line in done.split(b"\n"):
            if line:
                # A form in UTF-16 holds zeros itself: the path ends at the first.
                path_text, _, matched = line.partition(b"\0")
                found.add((os.path.relpath(os.fsdecode(path_text), folder), self._names[matched]))
        return found

    def _grep(self, *arguments: str) -> bytes:
        done = subprocess.run(
            [*GREP, f"--file=/proc/self/fd/{self._patterns}", *arguments],
            check=False, capture_output=True, pass_fds=(self._patterns,), env=ENVIRONMENT,
        )  # fmt: skip
        # Files that went meanwhile are nobody's; what cannot be looked through at all is a failure.
        if done.returncode > 1 and b"No such file" not in done.stderr:
            raise RuntimeError(f"grep failed: {done.stderr[:500]!r}")
        return done.stdout


def memory(pid: int) -> Iterator[bytes]:
    """The writable memory of a process, mapping by mapping."""
    place = Path("/proc", str(pid))
    with (place / "mem").open("rb", buffering=0) as mem:
        for line in (place / "maps").read_text().splitlines():
            where, rights, *_ = line.split(maxsplit=5)
            if not rights.startswith("rw") or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            yield b"\n"
            for at in range(start, end, CHUNK):
                with contextlib.suppress(
                    OSError, ValueError
                ):  # a page that is gone meanwhile, or has nothing behind it
                    mem.seek(at)
                    yield mem.read(min(CHUNK, end - at))


def below(pid: int) -> list[int]:
    """The process and all that it started, with what those started."""
    own = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                own += below(int(child))
    return own
