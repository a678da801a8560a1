"""Every exchange of ccxt, every endpoint: what the token signs is what ccxt signs, byte for byte."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest

from tallystick.runtime.keys import hsm
from tallystick.runtime.keys.keystore import Secret
from tallystick.schemas.errors import ConfigError
from tallystick.venues.signing.exchange import signed_exchange
from tallystick.venues.signing.handle import MARK
from tallystick.venues.signing.schemes import REFUSED, SCHEMES, Mac, Scheme, all_schemes, require_signable
from tests.support.exchange_logins import login, logins
from tests.support.exchanges import PACKAGES, Desk, Result, asked, compare, endpoints, frozen

__all__ = ["frozen"]
PIN = Secret("exchange-test-pin-29c1")
# ccxt's own RSA takes 40 ms a request.
RSA_CASES = 20
# ccxt logs in by HMAC there, whatever the key (docs/exchanges.md); nothing is sent.
NO_LOGIN = {("bybit", "rsa"), ("coinbase", "ed25519")}
# What a run must see, so that a change which signs less does not pass for one that signs right.
AT_LEAST = 10_000


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    directory = tmp_path_factory.mktemp("hsm") / "venue"
    hsm.create_token(directory, "venue", Secret("exchange-test-so-pin"), PIN)
    with hsm.Token.open(directory, "venue", PIN, writable=True) as token:
        yield Desk(token)


def run(desk: Desk, exchange_id: str, scheme: Scheme, api: str, every: int) -> tuple[Result, Counter[str]]:
    pair, result = desk.pair(exchange_id, scheme, api), Result(different=[])
    cases = endpoints(pair.software)
    for endpoint in cases[:: max(every, len(cases) // RSA_CASES if scheme.kind == "rsa" else 1)]:
        software = asked(pair.software, endpoint)
        compare(pair, result, f"{exchange_id} {endpoint.path}", software, lambda e=endpoint: asked(pair.token, e))
    return result, pair.keys.used


def test_every_exchange_of_ccxt_is_declared_or_refused_and_no_other() -> None:
    assert set(SCHEMES) | set(REFUSED) == set(ccxt.exchanges)
    assert not set(SCHEMES) & set(REFUSED)


@pytest.mark.timeout(300)
def test_the_token_signs_every_request_as_ccxt_does(desk: Desk, frozen: None) -> None:
    signed, different, unused = 0, [], []
    for exchange_id, scheme in all_schemes():
        result, used = run(desk, exchange_id, scheme, "sync", 1)
        signed += result.signed
        different += result.different
        if exchange_id not in BY_METHOD and not result.signed:
            unused.append(f"{exchange_id} {scheme.kind}")
        if scheme.kind == "hmac" and exchange_id not in BY_METHOD:
            declared = {f"{'+'.join(transforms)} {digest}" for transforms, digest in scheme.macs}
            if set(used) != declared:
                unused.append(f"{exchange_id}: declared {declared}, used {dict(used)}")
    assert different == []
    assert unused == []
    assert signed >= AT_LEAST, signed


# These sign in the methods that make an order or log in, and not in `sign`: `test_exchange_methods.py`.
BY_METHOD = {"coinbaseinternational", "grvt", "hibachi", "hyperliquid", "nado", "pacifica", "polymarket"}


@pytest.mark.parametrize("api", ["async", "pro"])
async def test_the_token_signs_as_ccxt_does_in_its_other_two_apis(desk: Desk, frozen: None, api: str) -> None:
    signed, different = 0, []
    for exchange_id, scheme in all_schemes():
        if not hasattr(ccxt.pro if api == "pro" else ccxt.async_support, exchange_id):
            continue
        result, _ = run(desk, exchange_id, scheme, api, 15)
        signed += result.signed
        different += result.different
    assert different == []
    assert signed >= 500


@pytest.fixture
def parsed_once() -> Iterator[None]:
    """The keys of ccxt in software are parsed once, and not for each signature, which takes it 40 ms."""
    module = sys.modules["ccxt.base.exchange"]
    load = module.load_pem_private_key
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_pem_private_key", cache(lambda data, *_: load(data, None)))
        yield


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("api", "least"), [("sync", 15_000), ("async", 7_000), ("pro", 6_000)])
async def test_the_token_signs_every_endpoint_of_every_api_as_ccxt_does(
    desk: Desk, frozen: None, parsed_once: None, api: str, least: int
) -> None:
    signed, different = 0, []
    for exchange_id, scheme in all_schemes():
        if not hasattr(PACKAGES[api], exchange_id):
            continue
        pair, result = desk.pair(exchange_id, scheme, api), Result(different=[])
        # `sign` is the same text in all three: of the other two every second endpoint.
        for endpoint in endpoints(pair.software)[:: 1 if api == "sync" else 2]:
            software = asked(pair.software, endpoint)
            compare(
                pair, result, f"{exchange_id} {endpoint.path}", software, lambda p=pair, e=endpoint: asked(p.token, e)
            )
        signed += result.signed
        different += result.different
    assert different == []
    assert signed >= least, signed


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_whatever_logs_in_to_a_websocket_does_so_as_ccxt_does(desk: Desk, frozen: None) -> None:
    signed: Counter[str] = Counter()
    for exchange_id, scheme in all_schemes():
        if exchange_id not in ccxt.pro.exchanges or (exchange_id, scheme.kind) in NO_LOGIN:
            continue
        pair = desk.pair(exchange_id, scheme, "pro")
        for name in logins(pair.software):
            before = pair.keys.used.total()
            software, token = await login(pair.software, name), await login(pair.token, name)
            assert token == software, (exchange_id, scheme.kind, name)
            signed[exchange_id] += pair.keys.used.total() > before
    assert signed.total() >= 250, signed
    assert len([name for name, count in signed.items() if count]) >= 55


def test_another_key_or_another_step_is_noticed(desk: Desk, frozen: None) -> None:
    pair, result = desk.pair("binance", SCHEMES["binance"][2], other_key=True), Result(different=[])
    for endpoint in endpoints(pair.software)[:50]:
        compare(pair, result, endpoint.path, asked(pair.software, endpoint), lambda e=endpoint: asked(pair.token, e))
    assert len(result.different) > 20
    steps: list[tuple[Mac, str]] = [((("utf8",), "sha512"), "SECRET_USED"), ((("base64",), "sha256"), "SIGNATURE_KIND")]
    for mac, code in steps:
        pair, result = desk.pair("kraken", Scheme(kind="hmac", macs=(mac,))), Result(different=[])
        for endpoint in endpoints(pair.software)[:50]:
            compare(
                pair,
                result,
                endpoint.path,
                asked(pair.software, endpoint),
                lambda p=pair, e=endpoint: asked(p.token, e),
            )
        assert any(code in text for text in result.different)


@pytest.mark.parametrize("exchange_id", sorted(REFUSED))
def test_what_cannot_be_signed_is_refused_by_name_and_reason(desk: Desk, exchange_id: str) -> None:
    with pytest.raises(ConfigError, match="EXCHANGE_UNSIGNABLE") as caught:
        signed_exchange(exchange_id, "sync", "", None, {})  # type: ignore[arg-type]
    assert exchange_id in caught.value.text
    assert REFUSED[exchange_id] in caught.value.text


def test_an_exchange_that_nobody_examined_and_a_kind_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="not examined"):
        require_signable("a-new-exchange")
    with pytest.raises(ConfigError, match=r"kraken takes no ed25519 signatures, but hmac"):
        require_signable("kraken", "ed25519")


@pytest.mark.parametrize("exchange_id", ["alpaca", "blockchaincom", "mudrex", "bitteam", "luno", "cryptomus"])
def test_a_secret_that_would_be_sent_is_not_even_where_the_exchange_is_forced(
    desk: Desk, frozen: None, exchange_id: str
) -> None:
    pair = desk.pair(exchange_id, SCHEMES["binance"][2])
    denied = [asked(pair.token, endpoint).denied for endpoint in endpoints(pair.software)]
    assert {code for code in denied if code} <= {"SECRET_SENT", "SECRET_USED"}
    assert any(denied)
    assert not any(MARK in asked(pair.token, endpoint).request for endpoint in endpoints(pair.software))


def test_a_secret_in_the_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="SECRET_GIVEN") as caught:
        signed_exchange("kraken", "sync", "hmac", None, {"secret": "hunter2"})  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
