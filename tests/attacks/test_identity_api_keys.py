"""Market data's API key under attack, at the running authority: used twice, copied, forgotten, begun anew."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.cli import operate
from tallystick.components.authority.methods.api_key import MAX_USED, ApiKeys
from tallystick.runtime.deployment.folder import passphrase_name
from tallystick.runtime.deployment.proof import api_key_file
from tallystick.runtime.keys.api_key import ApiKeyFile
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.enrolment import ApiKeyEvidence, Asked, GrantRequest
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.grants import KeyGrant
from tallystick.schemas.methods import ApiKey
from tallystick.schemas.nats_jwt import SessionKey
from tallystick.schemas.trust import OPERATOR_KEY_NAME, sign_document
from tests.support.deployment import make
from tests.support.identity import Door, always, digest

MARKET = "market-data"


def shown(key: str, follows: str) -> dict[str, str]:
    return {"kind": "api-key", "key": key, "next": follows}


def fresh() -> str:
    return os.urandom(32).hex()


class Holder:
    """Whoever has the file, and draws the keys that follow himself."""

    def __init__(self, door: Door, path: Path | None = None) -> None:
        file = api_key_file(door.deployment, MARKET, door.keystore[passphrase_name(MARKET)])
        if path is not None:
            file.path = path
        self.key, _ = file.show()
        self.following = fresh()

    def show(self, _: Asked) -> dict[str, str]:
        return shown(self.key, digest(self.following))

    def advance(self) -> None:
        self.key, self.following = self.following, fresh()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(*make(tmp_path_factory.mktemp("k") / "desk"))
    with made.running():
        yield made


@pytest.fixture
async def holder(door: Door) -> Holder:
    """The owner of a key that nobody used, whatever the test before did to the one that was."""
    with operate.Operator(door.deployment, door.keystore) as operator:
        await operate._grant_api_key(door.deployment, door.keystore, MARKET, operator.sign)
    return Holder(door)


async def test_a_key_opens_one_session_and_the_next_one_follows(door: Door, holder: Holder) -> None:
    boot, key = os.urandom(16), SessionKey(os.urandom(32))
    assert await door.session(MARKET, holder.show, boot=boot, key=key) == ""
    for _ in range(3):
        holder.advance()
        following = SessionKey(os.urandom(32))
        assert await door.session(MARKET, holder.show, boot=boot, key=following, held=key) == ""
        key = following
    kept = (door.deployment.state("authority") / f"api-key-{MARKET}.json").read_text()
    assert holder.key not in kept
    assert holder.following not in kept
    assert digest(holder.following) in kept


async def test_a_lost_answer_locks_nobody_out_also_across_a_restart(door: Door, holder: Holder) -> None:
    """Whoever asks again shows the same key and names the same next one, which a thief of the key does not know."""
    assert await door.session(MARKET, holder.show) == ""
    assert await door.session(MARKET, holder.show) == ""
    await asyncio.to_thread(door.restart)
    assert await door.session(MARKET, holder.show) == ""
    holder.advance()
    assert await door.session(MARKET, holder.show) == ""


async def test_two_holders_of_one_key_are_found_out_and_neither_gets_a_session(
    door: Door, holder: Holder, tmp_path: Path
) -> None:
    since = len(door.notices)
    copy = tmp_path / "copied"
    shutil.copy(door.deployment.state(MARKET) / "api-key", copy)
    thief = Holder(door, copy)
    assert thief.key == holder.key
    # With everything that market data has, the thief is first, and goes on for a while.
    for _ in range(2):
        assert await door.session(MARKET, thief.show) == ""
        thief.advance()
    # The owner comes with the key that the thief used up.
    assert await door.session(MARKET, holder.show) == "API_KEY_STOLEN"
    notice = await door.told("API_KEY_STOLEN", since)
    assert "tallystick revoke market-data" in notice.text
    # From then on nobody, also after a restart.
    assert await door.session(MARKET, thief.show) == "API_KEY_STOLEN"
    await asyncio.to_thread(door.restart)
    assert await door.session(MARKET, thief.show) == "API_KEY_STOLEN"
    # The way back is the operator's, and ends the thief.
    await operate.revoke(door.deployment, door.keystore, MARKET, "its key was copied")
    await operate.reinstate(door.deployment, door.keystore, MARKET, "its host was made anew")
    assert await door.session(MARKET, thief.show) == "API_KEY_UNKNOWN"
    assert await door.session(MARKET, Holder(door).show) == ""


async def test_a_key_without_its_certificate_and_a_certificate_without_its_key_open_nothing(
    door: Door, holder: Holder
) -> None:
    # One notice a second of each kind: what the test before was refused has its own second.
    await asyncio.sleep(1.1)
    since = len(door.notices)
    assert await door.session("gateway", holder.show) == "METHOD"
    assert await door.session(MARKET, holder.show, identity=door.identity("gateway")) == "IDENTITY"
    assert await door.session(MARKET, None) == "METHOD"
    for key in (fresh(), "00" * 32, digest(holder.key)):
        assert await door.session(MARKET, always(shown(key, digest(fresh())))) == "API_KEY_UNKNOWN"
    for key, follows in (("", "00" * 32), ("00" * 32, "zz"), (holder.key.upper(), "00" * 32), (holder.key, "")):
        assert await door.session(MARKET, always(shown(key, follows))) == "HEX"
    # One that names itself, so that it would never be used up.
    assert await door.session(MARKET, lambda _: shown(holder.key, digest(holder.key))) == "API_KEY_UNKNOWN"
    await door.told("API_KEY_UNKNOWN", since)
    # Guessing locks nobody out.
    assert await door.session(MARKET, holder.show) == ""


async def test_nobody_but_the_operator_begins_a_key_anew(door: Door, holder: Holder) -> None:
    deployment, keystore = door.deployment, door.keystore
    old = KeyGrant(deployment="test", component=MARKET, first=digest(fresh()), issued=1)
    new = KeyGrant(deployment="test", component=MARKET, first=digest(fresh()), issued=time.time_ns())
    other = KeyGrant(deployment="test", component="gateway", first=digest(fresh()), issued=time.time_ns())
    forged = sign_document(new, (OPERATOR_KEY_NAME, SessionKey(os.urandom(32))))
    signed = await asyncio.to_thread(operate._sign, deployment, keystore, new)
    for note, code in (
        (await asyncio.to_thread(operate._sign, deployment, keystore, old), "KEY_GRANT"),
        (await asyncio.to_thread(operate._sign, deployment, keystore, other), "KEY_GRANT"),
        (forged, "NOTE"),
    ):
        with pytest.raises(ConfigError, match=code):
            await operate._authority(deployment, keystore, "/v1/grant", GrantRequest(note))
    for name in (MARKET, "gateway"):
        status, said = await door.post("/v1/grant", {"note": signed}, door.identity(name))
        assert (status, said["code"]) == (403, "IDENTITY")
    # One that was taken is not taken again.
    await operate._authority(deployment, keystore, "/v1/grant", GrantRequest(signed))
    with pytest.raises(ConfigError, match="KEY_GRANT"):
        await operate._authority(deployment, keystore, "/v1/grant", GrantRequest(signed))


# -- the rules alone ------------------------------------------------------------------------------


def test_what_was_used_is_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    keys = [fresh() for _ in range(3)]
    method = ApiKey(first=digest(keys[0]))
    made = ApiKeys(MARKET, method, tmp_path / "k.json")
    made.require(ApiKeyEvidence(keys[0], digest(keys[1])))
    # A crash here: the answer never went out, and the next boot of the authority knows.
    again = ApiKeys(MARKET, method, tmp_path / "k.json")
    again.require(ApiKeyEvidence(keys[0], digest(keys[1])))
    again.require(ApiKeyEvidence(keys[1], digest(keys[2])))
    with pytest.raises(Unverified, match="API_KEY_STOLEN"):
        again.require(ApiKeyEvidence(keys[0], digest(keys[1])))
    # A disk that takes nothing: no key is used, none counts.
    other = ApiKeys(MARKET, method, tmp_path / "folder" / "k.json")
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(Unverified, match="API_KEYS_KEPT"):
        other.require(ApiKeyEvidence(keys[0], digest(keys[1])))
    (tmp_path / "k.json").write_text("{")
    with pytest.raises(ConfigError, match="API_KEYS_FILE"):
        ApiKeys(MARKET, method, tmp_path / "k.json")


def test_the_memory_of_used_keys_is_bounded_and_one_beyond_it_is_refused(tmp_path: Path) -> None:
    keys = [fresh() for _ in range(MAX_USED + 3)]
    made = ApiKeys(MARKET, ApiKey(first=digest(keys[0])), tmp_path / "k.json")
    for key, follows in itertools.pairwise(keys):
        made.require(ApiKeyEvidence(key, digest(follows)))
    assert len(made._kept.used) == MAX_USED
    with pytest.raises(Unverified, match="API_KEY_UNKNOWN"):
        made.require(ApiKeyEvidence(keys[0], digest(fresh())))


def test_the_components_file_holds_no_key_in_plain_text_and_opens_for_nobody_else(tmp_path: Path) -> None:
    passphrase = Secret("p" * 43)
    file = ApiKeyFile(tmp_path / "state" / "api-key", "test", MARKET, passphrase)
    first = file.begin()
    key, follows = file.show()
    assert (digest(key), file.show()) == (first, (key, follows))
    data = file.path.read_bytes()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert key.encode() not in data
    assert bytes.fromhex(key) not in data
    for deployment, component, other in (
        ("test", MARKET, Secret("q" * 43)),
        ("other", MARKET, passphrase),
        ("test", "gateway", passphrase),
    ):
        with pytest.raises(ConfigError, match="API_KEY_FILE"):
            ApiKeyFile(file.path, deployment, component, other).show()
    # Shown before its answer came: the same again.  After that: the next one.
    file.advance(fresh())
    assert file.show() == (key, follows)
    file.advance(key)
    assert digest(file.show()[0]) == follows
    for damaged in (data[:-1], b"", data + b"x" * 2000, data[:40] + b"\x00" + data[41:]):
        file.path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="API_KEY_FILE"):
            file.show()
