"""No secret is in the repository: keys, tokens and passwords are looked for in every tracked file.

What looks like one and is none stands in `known_secrets.txt`, a line each: SHA-256 of the match (its first 16 hex
digits), path, and why it may be there.  A line whose match is gone is an error: the list says what is, and no more.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.packaging.checkout import ROOT, tracked_files

KNOWN = ROOT / "tests" / "packaging" / "known_secrets.txt"
# Hashes of the packages' files, and nothing else.
UNREAD = {"requirements.lock", "requirements-dev.lock"}
# Bits a letter: English text has about 4 at this length, and few kinds of letters; random base64 has 5 or more.
RANDOM_BITS = 4.3
RANDOM_HEX_BITS = 3.3

SHAPES = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----\s*(?:[A-Za-z0-9+/=\\n\"'\s]{40,})",
    "JWT": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    "NATS seed": r"\bS[OAUXNC][A-Z2-7]{56}\b",
    "AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "Vault token": r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}\b",
    "PyPI token": r"\bpypi-AgEI[A-Za-z0-9_-]{50,}\b",
    "password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'{}<>]+:[^\s/:@\"'{}<>]{6,}@",
}
# A name that says what it is, and what is assigned to it.
ASSIGNED = re.compile(
    r"""(?i)["']?\b[a-z0-9_.-]*(?:pin(?!ned)|passw(?:or)?d|passphrase|secret|token|api_?key|private_?key|seed)[a-z0-9_-]*["']?"""
    r"""\s*(?:=|:|=>)\s*(?:b|f|r)?["']([A-Za-z0-9+/=_.~-]{16,})["']"""
)


class Found(NamedTuple):
    """What looks like a secret; `digest` names it without saying it."""

    path: str
    line: int
    what: str
    digest: str


def bits(text: str) -> float:
    """The entropy of a letter of `text`."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def is_random(text: str) -> bool:
    """Whether nobody would have typed it."""
    if re.fullmatch(r"[0-9a-fA-F]+", text):
        return len(text) >= 32 and bits(text) > RANDOM_HEX_BITS
    return bits(text) > RANDOM_BITS or (
        len(text) < 24 and bits(text) > RANDOM_BITS - 0.6 and bool(re.search(r"\d", text))
    )


def look(path: str, text: str) -> Iterator[Found]:
    """All that looks like a secret in a file's text."""
    for what, shape in SHAPES.items():
        for match in re.finditer(shape, text):
            yield _found(path, text, what, match.start(), match.group())
    for match in ASSIGNED.finditer(text):
        if is_random(match.group(1)):
            yield _found(path, text, "assignment", match.start(), match.group(1))


def _found(path: str, text: str, what: str, at: int, match: str) -> Found:
    return Found(path, text.count("\n", 0, at) + 1, what, hashlib.sha256(match.encode()).hexdigest()[:16])


def files() -> Iterator[tuple[str, str]]:
    for path in tracked_files():
        if (ROOT / path).is_dir():
            continue  # a link to a package, whose files are listed by themselves
        data = (ROOT / path).read_bytes()
        if path not in UNREAD and b"\0" not in data:
            yield path, data.decode("utf-8", "replace")


def known() -> dict[tuple[str, str], str]:
    lines = [line for line in KNOWN.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return {(path, digest): why for digest, path, why in (line.split(maxsplit=2) for line in lines)}


def test_no_secret_is_in_the_repository() -> None:
    found = [one for path, text in files() for one in look(path, text)]
    assert [one for one in found if (one.path, one.digest) not in known()] == []
    assert known().keys() - {(one.path, one.digest) for one in found} == set(), "gone: take the line out"


R = "q3Zx9LmT7vKp2WsD8nYb4RcF6hJt1GdA"
# Never whole in this file, which is looked through itself.
WORD = "PRIVATE"
PLANTED = {
    "private key": f"-----BEGIN {WORD} KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n",
    "encrypted key of another kind": "-----BEGIN EC PRIV" + "ATE KEY-----\n" + "MHcCAQEEIIGk" * 5,
    "JWT": "eyJhbGciOiJFZERTQSJ9" + ".eyJzdWIiOiJleGVjdXRpb24ifQ." + R,
    "NATS seed": "S" + "U" + ("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" * 2)[:56],
    "AWS key": "AK" + "IAIOSFODNN7EXAMPLE",
    "GitHub token": "gh" + "p_" + R + "abcd",
    "Vault token": "hv" + "s." + R,
    "password in a URL": "postgres://" + "desk:hunter22" + "@db/desk",
    "python": f'API_KEY = "{R}"',
    "toml": f"api_key = '{R}'",
    "json": f'{{"client_secret": "{R}"}}',
    "yaml": f'password: "{R[:20]}"',
    "hex": f'master_pin = "{hashlib.sha256(b"1").hexdigest()}"',
    "bytes": f'seed=b"{R}"',
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"# a file\n\n{PLANTED[kind]}\n")
    found = list(look("module.py", path.read_text()))
    assert {one.line for one in found} == {3}, found


@pytest.mark.parametrize(
    "text",
    [
        'PIN = Secret("a pin for tests")',
        'token = TokenProcess(deployment.token("signing"), "signing")',
        'passphrase_name = "pki.gateway.passphrase"',
        "-----BEGIN PRIVATE KEY-----",
        'secret: "a-word-and-another-word"',
        "https://user@host/path and https://example.org:8080/a@b",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert list(look("module.py", text)) == []
