"""A secret that is not there: whatever a library does with the handle shows nothing and sends nothing."""

from __future__ import annotations

import base64
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import pytest

from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError
from tallystick.venues import Denied
from tallystick.venues.signing.handle import MARK, OpaqueBytes, OpaqueText, handle, require_absent
from tallystick.venues.signing.schemes import Scheme
from tallystick.venues.signing.token_keys import take_in


class NoKeys:
    """Nobody signs in these tests."""

    def mac(self, *_: object) -> NoReturn:
        raise AssertionError

    ed25519 = rsa = ecdsa = mac

    @property
    def point(self) -> bytes:
        raise AssertionError


@pytest.fixture
def secret() -> OpaqueText:
    return handle(NoKeys(), MARK)


READS: list[Callable[[Any], Any]] = [
    lambda s: s + "x",
    lambda s: "x" + s,
    lambda s: s * 2,
    lambda s: f"{s}",
    lambda s: f"{s:>80}",
    lambda s: "%s" % s,  # noqa: UP031
    "{}".format,
    str,
    lambda s: s % (),
    lambda s: s[0],
    lambda s: s[::2],
    list,
    lambda s: s.split(":"),
    lambda s: s.strip(),
    lambda s: s.lower(),
    lambda s: s.replace("a", "b"),
    lambda s: s.partition("a"),
    lambda s: s.join(["a", "b"]),
    lambda s: s.translate({}),
    pickle.dumps,
    copy.copy,
]


@pytest.mark.parametrize("read", READS)
def test_what_needs_the_secret_itself_is_refused(secret: OpaqueText, read: Callable[[Any], Any]) -> None:
    with pytest.raises(Denied, match="SECRET_USED"):
        read(secret)


@pytest.mark.parametrize(
    "read",
    [lambda s: s + b"x", lambda s: b"x" + s, lambda s: s.hex(), lambda s: s[0], list, lambda s: s.upper()],
)
def test_its_bytes_are_refused_as_well(secret: OpaqueText, read: Callable[[Any], Any]) -> None:
    with pytest.raises(Denied, match="SECRET_USED"):
        read(secret.encode())


def test_what_prepares_a_secret_is_recorded_and_not_done(secret: OpaqueText) -> None:
    prepared = secret.upper().encode()
    assert isinstance(prepared, OpaqueBytes)
    assert prepared.transforms == ("upper", "utf8")
    assert prepared.decode().transforms == ("upper", "utf8", "text")
    assert secret[-64:].transforms == ("[-64:]",)
    assert secret.encode()[0:32].transforms == ("utf8", "[0:32]")


def test_it_shows_itself_as_what_it_is(secret: OpaqueText) -> None:
    assert repr(secret) == "<key in the HSM >"
    assert MARK not in repr(secret.upper())
    assert MARK not in repr([secret])


# What a library in C reads without asking holds the placeholder, and is found.
THROUGH: list[Callable[[Any], Any]] = [
    lambda s: {"url": "https://x/?secret=" + "".join(["", s])},  # noqa: FLY002
    lambda s: {"body": json.dumps({"secret": s})},
    lambda s: {"url": quote(s)},
    lambda s: {"headers": {"X-Secret": s}},
    lambda s: {"headers": {s: "X"}},
    lambda s: {"body": {"nested": [{"deep": s}]}},
    lambda s: {"body": bytes(s.encode())},
    lambda s: {"body": bytearray(s.encode()).decode()},
]


@pytest.mark.parametrize("made", THROUGH)
def test_a_request_that_holds_it_is_refused_whatever_way_it_got_there(
    secret: OpaqueText, made: Callable[[Any], Any]
) -> None:
    try:
        request = made(secret)
    except Denied as exc:
        assert exc.code == "SECRET_USED"  # noqa: PT017 - either is a refusal
        return
    with pytest.raises(Denied, match="SECRET_SENT"):
        require_absent(*request.values())


def test_an_ordinary_request_is_let_through() -> None:
    require_absent("https://x/?a=b", None, {"X-Signature": "ab" * 32}, b"body", {"a": [1, {"b": "c"}]})
    require_absent(urlencode({"a": base64.b64encode(b"x").decode()}))


def test_a_form_of_the_secret_that_its_scheme_does_not_know_is_refused() -> None:
    of_coinone = handle(NoKeys(), MARK, (("upper", "utf8"),))
    assert of_coinone.upper().encode().transforms == ("upper", "utf8")
    uses: list[Callable[[Any], Any]] = [
        lambda s: s.encode(),
        lambda s: s[:3],
        lambda s: s.upper().upper(),
        lambda s: s.upper().encode()[:3],
    ]
    for use in uses:
        with pytest.raises(Denied, match="SECRET_USED"):
            use(of_coinone)
    with pytest.raises(Denied, match="SECRET_USED"):
        handle(NoKeys(), MARK, ()).encode()


class NoToken:
    """Nothing reaches a token in these tests."""

    def import_private(self, *_: object) -> NoReturn:
        raise AssertionError

    import_mac = import_private


BROKEN: list[tuple[str, Scheme]] = [
    ("0xhunter2hunter2", Scheme(kind="secp256k1", form="hex")),
    ("hunter2!", Scheme(kind="ed25519", form="base64")),
    ("hunter2", Scheme(kind="ed25519", form="base58")),
    ("-----BEGIN hunter2", Scheme(kind="p256", form="ec-pem")),
    ("hunter2!", Scheme(kind="hmac", macs=((("base64",), "sha512"),))),
]


@pytest.mark.parametrize(("secret", "scheme"), BROKEN)
def test_an_error_about_a_secret_repeats_nothing_of_it_nor_does_what_hangs_on_to_it(
    secret: str, scheme: Scheme
) -> None:
    with pytest.raises(ConfigError) as caught:
        take_in(NoToken(), b"id", "label", Secret(secret), scheme)  # type: ignore[arg-type]
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__
