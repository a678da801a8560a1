"""The locks hold exact versions and hashes and name no source; the metadata ranges begin at what they hold."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.checkout import ROOT

_HEAD = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[0-9][0-9a-z.]*)(?P<marker> ; [a-z_ \"'<>=.0-9]+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
_SOURCE = re.compile(r"://|--(?:index-url|extra-index-url|find-links|trusted-host|no-index)\b| @ |(?<![\w#])(?:\.|~)?/")


def parse_lock(text: str) -> dict[str, str]:
    """Versions by name.  Raises `ValueError` on a requirement without exact version or without hashes."""
    versions = {}
    body = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for entry in body.replace("\\\n", " ").splitlines():
        head, *hashes = (part.strip() for part in re.split(r"\s+(?=--)", entry.strip()))
        match = _HEAD.fullmatch(head)
        if not match or not hashes or not all(_HASH.fullmatch(item) for item in hashes):
            msg = f"not an exact version with its hashes: {entry[:100]!r}"
            raise ValueError(msg)
        versions[match["name"]] = match["version"]
    return versions


def next_break(version: Version) -> Version:
    """The first version that may break what works with `version`: the next major, below 1.0 the next minor."""
    return Version(f"{version.major + 1}" if version.major else f"0.{version.minor + 1}")


# faust-streaming: the streams worker overrides what is private to this version.
EXACT = ("faust-streaming",)
LOCKS = ("requirements.lock", "requirements-dev.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_version_and_hashes(lock: str) -> None:
    assert len(parse_lock((ROOT / lock).read_text())) > 20


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_index_a_host_or_a_path(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if _SOURCE.search(line)]
    assert lines == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://index.example/simple",
        "--find-links wheels",
        "thing @ file:///thing.whl",
        "    # via -r /home/me/requirements.in",
        "    # from ./wheels",
    ],
)
def test_a_named_source_is_found(line: str) -> None:
    assert _SOURCE.search(line)


@pytest.mark.parametrize(
    "text",
    [
        "thing==1.0",
        "thing>=1.0 \\\n    --hash=sha256:" + "a" * 64,
        "thing==1.0 \\\n    --hash=md5:" + "a" * 32,
        "thing==1.0+local \\\n    --hash=sha256:" + "a" * 64,
        "-e .",
    ],
)
def test_a_requirement_that_is_not_locked_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an exact version"):
        parse_lock(text)


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = [
    *(("requirements.lock", line) for line in PYPROJECT["project"]["dependencies"]),
    *(("requirements.lock", line) for line in PYPROJECT["build-system"]["requires"]),
    *(("requirements-dev.lock", line) for line in PYPROJECT["project"]["optional-dependencies"]["dev"]),
]


@pytest.mark.parametrize(("lock", "line"), DIRECT, ids=[line for _, line in DIRECT])
def test_a_direct_dependency_ranges_from_what_the_lock_holds_to_what_may_break(lock: str, line: str) -> None:
    requirement = Requirement(line)
    version = parse_lock((ROOT / lock).read_text())[canonicalize_name(requirement.name)]
    exact, ranged = SpecifierSet(f"=={version}"), SpecifierSet(f">={version},<{next_break(Version(version))}")
    assert requirement.specifier == (exact if requirement.name in EXACT else ranged)


def test_the_dev_lock_holds_the_runtime_lock() -> None:
    runtime, dev = (parse_lock((ROOT / lock).read_text()) for lock in LOCKS)
    assert runtime.items() <= dev.items()
