"""Execution's hardware token under attack, at the running authority: certificates without it, and its answers played back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tallystick.components.authority.methods.hardware_token import LIFE_S, MAX_OPEN, Challenges
from tallystick.runtime.deployment.folder import KEY_IDENTITY
from tallystick.runtime.keys.token_process import ProcessSigner
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.enrolment import Asked, HardwareEvidence, challenge_bytes, proof_bytes
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.methods import HardwareToken
from tallystick.schemas.nats_jwt import SessionKey
from tests.support import world
from tests.support.deployment import make
from tests.support.identity import Door

EXECUTION = "execution"


class Hardware:
    """The host of execution: its token, and the way to ask for challenges."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.token = door.token("execution")
        self.signer: ProcessSigner = self.token.signer(KEY_IDENTITY)

    async def challenge(self, boot: bytes, name: str = EXECUTION, component: str = "") -> tuple[int, dict[str, str]]:
        body = {"boot": boot.hex(), "component": component or name}
        return await self.door.post("/v1/challenge", body, self.door.identity(name))

    def answering(self, sign: Callable[[Asked, bytes], bytes] | None = None) -> Any:
        async def answer(asked: Asked) -> dict[str, str]:
            status, said = await self.challenge(asked.boot)
            assert status == 200
            given = bytes.fromhex(said["challenge"])
            signature = sign(asked, given) if sign else self.signer.sign(challenge_bytes(asked, given))
            return shown(given, signature)

        return answer

    def signing(self, what: Callable[[Asked, bytes], bytes]) -> Callable[[Asked, bytes], bytes]:
        return lambda asked, given: self.signer.sign(what(asked, given))


def shown(challenge: bytes, signature: bytes) -> dict[str, str]:
    return {"kind": "hardware-token", "challenge": challenge.hex(), "signature": signature.hex()}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(*make(tmp_path_factory.mktemp("h") / "desk"))
    with made.running():
        yield made


@pytest.fixture(scope="module")
def hardware(door: Door) -> Iterator[Hardware]:
    made = Hardware(door)
    yield made
    made.token.close()


async def test_a_stolen_certificate_and_key_without_the_token_open_nothing(door: Door, hardware: Hardware) -> None:
    since = len(door.notices)
    assert await door.session(EXECUTION, hardware.answering()) == ""
    thief = SessionKey(os.urandom(32))
    for sign in (
        lambda asked, given: thief.sign(challenge_bytes(asked, given)),
        lambda asked, given: bytes(64),
        lambda asked, given: b"",
    ):
        assert await door.session(EXECUTION, hardware.answering(sign)) in ("HARDWARE_SIGNATURE", "HEX")
    await door.told("HARDWARE_SIGNATURE", since)
    # Of the renewals likewise: who took over a session key keeps no boot alive without the token.
    boot, key, following = os.urandom(16), SessionKey(os.urandom(32)), SessionKey(os.urandom(32))
    assert await door.session(EXECUTION, hardware.answering(), boot=boot, key=key) == ""
    assert await door.session(EXECUTION, None, boot=boot, key=following, held=key) == "METHOD"
    assert await door.session(EXECUTION, hardware.answering(), boot=boot, key=following, held=key) == ""


async def test_an_answer_serves_once_and_for_its_own_session_alone(door: Door, hardware: Hardware) -> None:
    since = len(door.notices)
    boot, key = os.urandom(16), SessionKey(os.urandom(32))
    kept: list[dict[str, str]] = []

    async def answer(asked: Asked) -> dict[str, str]:
        kept.append(await hardware.answering()(asked))
        return kept[-1]

    assert await door.session(EXECUTION, answer, boot=boot, key=key) == ""
    # Played back for the very same session, and for another.
    assert await door.session(EXECUTION, lambda _: kept[0], boot=boot, key=key) == "CHALLENGE"
    assert await door.session(EXECUTION, lambda _: kept[0]) == "CHALLENGE"
    # Made for another session key than the one that is asked for; for another boot; never given out at all.
    other = SessionKey(os.urandom(32))

    def elsewhere(asked: Asked, given: bytes) -> bytes:
        moved = Asked(asked.deployment, asked.component, asked.boot, other.public, asked.certificate)
        return hardware.signer.sign(challenge_bytes(moved, given))

    assert await door.session(EXECUTION, hardware.answering(elsewhere)) == "HARDWARE_SIGNATURE"
    _, said = await hardware.challenge(os.urandom(16))
    given = bytes.fromhex(said["challenge"])

    def borrowed(asked: Asked) -> dict[str, str]:
        return shown(given, hardware.signer.sign(challenge_bytes(asked, given)))

    assert await door.session(EXECUTION, borrowed) == "CHALLENGE"
    invented = os.urandom(32)
    assert (
        await door.session(
            EXECUTION, lambda asked: shown(invented, hardware.signer.sign(challenge_bytes(asked, invented)))
        )
        == "CHALLENGE"
    )
    await door.told("CHALLENGE", since)


async def test_what_the_token_signs_elsewhere_is_no_answer(door: Door, hardware: Hardware) -> None:
    """Domain separation: neither a session's proof, nor the bare challenge, nor its hash passes for one."""
    others: list[Callable[[Asked, bytes], bytes]] = [
        lambda asked, given: given,
        lambda asked, given: challenge_bytes(asked, given).partition(b"\x00")[2],
        lambda asked, given: proof_bytes(
            asked.deployment, asked.component, asked.boot, asked.session_key, asked.certificate
        ),
    ]
    for other in others:
        said = await door.session(EXECUTION, hardware.answering(hardware.signing(other)))
        assert said == "HARDWARE_SIGNATURE"


async def test_a_token_that_is_pulled_out_opens_no_session_and_ends_none(door: Door) -> None:
    client, boot = door.desk.setup(EXECUTION).authority(), os.urandom(16)
    place = door.deployment.tokens / EXECUTION
    away = place.with_name("away")
    place.rename(away)
    try:
        # Who starts without it has nothing to run with.
        with pytest.raises(ConfigError, match="HSM_TOKEN"):
            await client.obtain(SessionKey(os.urandom(32)), boot)
        away.rename(place)
        await client.obtain(SessionKey(os.urandom(32)), boot)
        place.rename(away)
        # Who has a session keeps it, and asks again.
        with pytest.raises(Unverified, match="HSM_TOKEN"):
            await client.obtain(SessionKey(os.urandom(32)), boot)
    finally:
        if away.exists():
            away.rename(place)
    await client.obtain(SessionKey(os.urandom(32)), boot)


async def test_nobody_else_is_given_a_challenge(door: Door, hardware: Hardware) -> None:
    since = len(door.notices)
    for name in ("gateway", "strategy-alpha", "market-data"):
        assert (await hardware.challenge(os.urandom(16), name))[1]["code"] == "METHOD"
    assert (await hardware.challenge(os.urandom(16), "gateway", EXECUTION))[1]["code"] == "IDENTITY"
    assert (await hardware.challenge(b"short"))[1]["code"] == "HEX"
    await door.told("IDENTITY", since)


# -- the rules alone ------------------------------------------------------------------------------

KEY = world.key("hardware")
ASKED = Asked("test", EXECUTION, b"b" * 16, b"k" * 32, b"c" * 32)


def rules() -> Challenges:
    return Challenges(HardwareToken(algorithm="ed25519", key=KEY.public.hex()), os.urandom)


def answered(challenge: bytes) -> HardwareEvidence:
    return HardwareEvidence(challenge.hex(), KEY.sign(challenge_bytes(ASKED, challenge)).hex())


def test_a_challenge_lives_for_seconds() -> None:
    made, now = rules(), world.NOW
    in_time = made.challenge(ASKED.boot, ASKED.certificate, now)
    made.require(answered(in_time), ASKED, now + LIFE_S * SECOND - 1)
    late = made.challenge(ASKED.boot, ASKED.certificate, now)
    with pytest.raises(Unverified, match="CHALLENGE"):
        made.require(answered(late), ASKED, now + LIFE_S * SECOND)


def test_a_wrong_answer_uses_the_challenge_up() -> None:
    made = rules()
    given = made.challenge(ASKED.boot, ASKED.certificate, world.NOW)
    with pytest.raises(Unverified, match="HARDWARE_SIGNATURE"):
        made.require(HardwareEvidence(given.hex(), bytes(64).hex()), ASKED, world.NOW)
    with pytest.raises(Unverified, match="CHALLENGE"):
        made.require(answered(given), ASKED, world.NOW)


def test_an_answer_under_another_certificate_is_refused() -> None:
    made = rules()
    given = made.challenge(ASKED.boot, b"d" * 32, world.NOW)
    with pytest.raises(Unverified, match="CHALLENGE"):
        made.require(answered(given), ASKED, world.NOW)


def test_challenges_without_end_take_no_memory() -> None:
    made = rules()
    for n in range(MAX_OPEN * 3):
        made.challenge(ASKED.boot, ASKED.certificate, world.NOW + n)
    assert len(made._open) == MAX_OPEN
    made.challenge(ASKED.boot, ASKED.certificate, world.NOW + LIFE_S * 2 * SECOND)
    assert len(made._open) == 1


def test_a_token_of_p256_proves_the_same() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    made = Challenges(HardwareToken(algorithm="p256", key=point.hex()), os.urandom)
    given = made.challenge(ASKED.boot, ASKED.certificate, world.NOW)
    signature = key.sign(challenge_bytes(ASKED, given), ec.ECDSA(hashes.SHA256()))
    made.require(HardwareEvidence(given.hex(), signature.hex()), ASKED, world.NOW)
    again = made.challenge(ASKED.boot, ASKED.certificate, world.NOW)
    with pytest.raises(Unverified, match="HARDWARE_SIGNATURE"):
        made.require(HardwareEvidence(again.hex(), signature.hex()), ASKED, world.NOW)
