"""Every exchange of ccxt that can be signed in a token, against ccxt with the same secret in software: the same bytes.

The token is SoftHSM's.  Time, nonces and chance stand still (`tests/support/signing.py`).
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest

from tallystick.schemas.errors import ConfigError
from tallystick.venues import Denied
from tallystick.venues.signing import (
    EXCHANGES,
    Api,
    Refused,
    Scheme,
    base_class,
    require_signable,
    secret_handle,
    signed_class,
    signed_exchange,
)
from tallystick.venues.signing.schemes import Digest, Form
from tests.support.signing import (
    SIGNABLE,
    CountingKeys,
    Credentials,
    config,
    credentials,
    endpoints,
    frozen,
    in_token,
    outcome,
    plain,
    request,
    schemes,
    secret_of,
)

# Endpoints of ccxt's own list that ccxt itself cannot build: no address, or a body of another form than a list.
NOT_BUILT_BY_CCXT = {"bingx": 20, "bitrue": 3, "coinbaseinternational": 3, "gate": 14, "gateeu": 14, "whitebit": 1}
# `make test` compares every eighth endpoint by these, which take a core a millisecond, and every second one of exchanges
# that inherit all from another; `make slow` compares all.
COSTLY = ("rsa", "secp256k1", "ed25519")
# What signs in functions of its own and not in `sign`.
ELSEWHERE = {"grvt", "hibachi", "hyperliquid", "nado", "pacifica", "polymarket"}


@pytest.fixture(scope="module")
def creds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credentials]:
    with credentials(tmp_path_factory.mktemp("hsm")) as made, frozen():
        yield made


class Compared:
    """What comparing found: how many cases of which kind, and the first few that differ."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.by_exchange: dict[str, Counter[str]] = {}
        self.different: list[object] = []

    def add(
        self, exchange_id: str, scheme: Scheme, case: object, ours: object, theirs: object, *, signed: bool
    ) -> None:
        if ours != theirs:
            kind = "different"
            self.different.append((exchange_id, scheme.name, case, ours, theirs))
        else:
            kind = "signed" if signed else str(theirs[0]) if isinstance(theirs, tuple) else "unsigned"
        self.counts[kind] += 1
        self.by_exchange.setdefault(exchange_id, Counter())[kind] += 1


def is_heir(exchange_id: str) -> bool:
    return base_class(exchange_id).__mro__[1].__name__ in EXCHANGES


def compare(creds: Credentials, api: Api, step: int = 1, costly: int = 1, heirs: int = 1) -> Compared:
    """Every `step`th endpoint of every exchange by every scheme, signed in the token and in software.

    `costly`, `heirs`: of those that would be compared, every so many by a costly scheme, of an exchange with a parent.
    """
    compared = Compared()
    for exchange_id in SIGNABLE:
        for scheme in schemes(exchange_id):
            if api == "pro" and (not scheme.websocket or exchange_id not in ccxt.pro.exchanges):
                continue
            keys = CountingKeys(creds.keys(scheme), scheme)
            theirs, ours = plain(exchange_id, api, scheme), in_token(exchange_id, api, scheme, keys)
            every = step * (costly if scheme.kind in COSTLY else 1) * (heirs if is_heir(exchange_id) else 1)
            for entry in itertools.islice(endpoints(theirs), None, None, every):
                before = keys.uses
                wanted, made = request(theirs, entry), request(ours, entry)
                case = (entry.path, entry.api, entry.method)
                compared.add(exchange_id, scheme, case, made, wanted, signed=keys.uses > before)
            # Nothing was opened that would have to be closed.
            assert theirs.session is None or api == "sync"
    return compared


def test_ten_thousand_private_requests_are_byte_for_byte_those_of_ccxt(creds: Credentials) -> None:
    compared = compare(creds, "sync", costly=8, heirs=2)
    assert compared.different[:3] == []
    assert compared.counts["signed"] >= 10_000
    # Every exchange was signed for, and nothing but what ccxt cannot build either went without.
    assert {name for name, counts in compared.by_exchange.items() if not counts["signed"]} == ELSEWHERE
    for name, counts in compared.by_exchange.items():
        assert counts["error"] <= NOT_BUILT_BY_CCXT.get(name, 0), name
    assert compared.counts["refused"] == 0


def test_the_async_exchanges_sign_a_sample_as_ccxt_does(creds: Credentials) -> None:
    compared = compare(creds, "async", 25, 4)
    assert compared.different[:3] == []
    assert compared.counts["signed"] >= 500
    assert compared.by_exchange.keys() == set(SIGNABLE)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("api", "least"), [("sync", 18_000), ("async", 18_000), ("pro", 15_000)])
def test_every_private_endpoint_of_every_api_is_signed_as_ccxt_does(creds: Credentials, api: Api, least: int) -> None:
    compared = compare(creds, api)
    assert compared.different[:3] == []
    assert compared.counts["signed"] >= least


def test_exactly_the_declared_exchanges_are_refused_by_name_and_reason() -> None:
    assert set(EXCHANGES) == set(ccxt.exchanges), "ccxt gained or lost exchanges: examine them, then change the table"
    refused = {}
    for exchange_id in ccxt.exchanges:
        try:
            require_signable(exchange_id)
        except ConfigError as exc:
            assert exc.code == "EXCHANGE_UNSIGNABLE"
            assert exchange_id in exc.text
            refused[exchange_id] = exc.text
    assert {name: entry.reason in refused[name] for name, entry in EXCHANGES.items() if isinstance(entry, Refused)} == (
        dict.fromkeys(refused, True)
    )
    assert (len(SIGNABLE), len(refused)) == (93, 11)
    with pytest.raises(ConfigError, match="nobody examined"):
        require_signable("an-exchange-of-tomorrow")


def test_the_table_names_the_credentials_that_ccxt_requires() -> None:
    for exchange_id in SIGNABLE:
        signs = require_signable(exchange_id)
        required = {name for name, wanted in base_class(exchange_id)().requiredCredentials.items() if wanted}
        fields = {scheme.field for scheme in signs.schemes}
        assert required - fields == set(signs.needs), exchange_id
        assert fields & required, exchange_id


def test_whoever_sends_the_secret_itself_is_refused_even_where_it_is_forced(creds: Credentials) -> None:
    scheme = schemes("okx")[0]
    forced = [
        name for name, entry in EXCHANGES.items() if isinstance(entry, Refused) and "sends the secret" in entry.reason
    ]
    assert len(forced) >= 5
    for exchange_id in forced:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(EXCHANGES, exchange_id, require_signable("okx"))
            ours, theirs = (
                in_token(exchange_id, "sync", scheme, creds.keys(scheme)),
                plain(exchange_id, "sync", scheme),
            )
        made = Counter(request(ours, entry) for entry in endpoints(ours))
        assert made["refused", "SECRET_USED"] >= 5, exchange_id
        # It is true that it would have been sent, plain or as base64 of key and secret.
        sent = [json.loads(text) for kind, text in (request(theirs, e) for e in endpoints(theirs)) if kind == "ok"]
        assert any(secret_of(scheme) in json.dumps(each) or "Basic " in json.dumps(each) for each in sent), exchange_id


# --- the comparison itself ---------------------------------------------------------------------------


def _compared(ours: Any, theirs: Any, keys: CountingKeys) -> tuple[int, int]:
    """How many requests were signed, and how many of them are the same."""
    signed = same = 0
    for entry in endpoints(theirs):
        before = keys.uses
        made, wanted = request(ours, entry), request(theirs, entry)
        if keys.uses > before or made[0] == "refused":
            signed += 1
            same += made == wanted
    return signed, same


@pytest.mark.parametrize(
    ("exchange_id", "number"),
    [("okx", 0), ("kraken", 0), ("bithumb", 0), ("binanceus", 0), ("lbank", 1), ("coinbase", 1)],
)
def test_another_key_makes_every_signature_differ(creds: Credentials, exchange_id: str, number: int) -> None:
    scheme = schemes(exchange_id)[number]
    keys = CountingKeys(creds.keys(scheme, "somebody else"), scheme, "somebody else")
    signed, same = _compared(in_token(exchange_id, "sync", scheme, keys), plain(exchange_id, "sync", scheme), keys)
    assert signed >= 30
    assert same == 0


@pytest.mark.parametrize(
    ("exchange_id", "form"), [("coinone", ("utf8",)), ("kraken", ("utf8",)), ("btcbox", ("utf8",))]
)
def test_a_secret_that_was_stored_in_another_form_makes_every_signature_differ(
    creds: Credentials, exchange_id: str, form: Form
) -> None:
    scheme = schemes(exchange_id)[0]
    digest = scheme.macs[0][1]
    wrong = Scheme(scheme.name, "hmac", "secret", ((form, digest),), (), scheme.shape, "text")
    stored = creds.keys(wrong)

    class Wrong(CountingKeys):
        def mac(self, transforms: Form, algorithm: Digest, data: bytes) -> bytes:
            self.uses += 1
            return stored.mac(form, algorithm, data)

    keys = Wrong(stored, scheme)
    signed, same = _compared(in_token(exchange_id, "sync", scheme, keys), plain(exchange_id, "sync", scheme), keys)
    assert signed >= 5
    assert same == 0


def test_an_exchange_that_begins_to_use_its_secret_otherwise_is_refused(creds: Credentials) -> None:
    scheme = schemes("okx")[0]
    keys = creds.keys(scheme)
    okx = in_token("okx", "sync", scheme, keys)
    digest = ccxt.Exchange.hmac.__defaults__[0]
    for use, code in [
        (lambda x: x.hmac(b"data", x.encode(x.secret.upper()), digest), "SECRET_USED"),
        (lambda x: x.hmac(b"data", x.base64_to_binary(x.secret), digest), "SECRET_USED"),
        (lambda x: x.hmac(b"data", x.encode(x.secret), "sha512"), "SIGNATURE_KIND"),
        (lambda x: x.hmac(b"data", x.encode(x.secret), "md5"), "SIGNATURE_KIND"),
        (lambda x: x.hmac(b"data", b"a key of the library's own", digest), "SIGNATURE_KIND"),
        (lambda x: x.hmac(x.encode(x.secret), x.encode(x.secret), digest), "SECRET_USED"),
        (lambda x: x.eddsa(b"data", x.encode(x.secret)), "SIGNATURE_KIND"),
        (lambda x: x.jwt({"iss": x.secret}, x.encode(x.secret)), "SECRET_USED"),
        (lambda x: x.jwt({}, x.encode(x.secret), "sha256", False, {"alg": "none"}), "SIGNATURE_KIND"),
        (lambda x: x.totp("JBSWY3DPEHPK3PXP"), "SIGNATURE_KIND"),
    ]:
        with pytest.raises(Denied) as refusal:
            use(okx)
        assert refusal.value.code == code


def test_a_secret_given_to_the_library_is_refused(creds: Credentials) -> None:
    scheme = schemes("okx")[0]
    for field in ("secret", "privateKey", "twofa"):
        with pytest.raises(ConfigError, match="SIGNING_SECRET"):
            signed_exchange("okx", "sync", creds.keys(scheme), "", {"apiKey": "key", field: "in plaintext"})


def test_an_exchange_without_such_an_api_or_scheme_is_refused_by_name(creds: Credentials) -> None:
    with pytest.raises(ConfigError, match="no pro API of zaif"):
        in_token("zaif", "pro", schemes("zaif")[0], creds.keys(schemes("zaif")[0]))
    with pytest.raises(ConfigError, match="websocket login of bybit"):
        in_token("bybit", "pro", schemes("bybit")[1], creds.keys(schemes("bybit")[1]))
    with pytest.raises(ConfigError, match="there is hmac-sha256"):
        require_signable("okx").scheme("ed25519")


def test_what_leaves_by_fetch_holds_no_trace_of_the_secret(creds: Credentials) -> None:
    scheme = schemes("okx")[0]
    cls = signed_class("okx", "sync", creds.keys(scheme), scheme)
    okx = cls(config("okx", scheme))
    okx.secret = secret_handle(scheme)
    shown = "".join([okx.secret])
    for url, headers, body in [
        (f"https://www.okx.com/?s={shown}", None, None),
        ("https://www.okx.com/", {"X-Secret": shown.lower()}, None),
        ("https://www.okx.com/", None, json.dumps({"secret": okx.secret})),
        ("https://www.okx.com/", None, ccxt.Exchange.string_to_base64(f"key:{shown}")),
    ]:
        with pytest.raises(Denied, match="SECRET_USED"):
            okx.fetch(url, "GET", headers, body)


def test_random_requests_repeat_where_chance_stands_still() -> None:
    values = []
    for _ in range(2):
        random.seed(7)
        values.append(outcome(lambda: (ccxt.Exchange.uuid(), ccxt.Exchange.uuid22(), ccxt.Exchange.random_bytes(4))))
    assert values[0] != ("ok", "")
    with frozen():
        first, second = (outcome(lambda: (ccxt.Exchange.uuid(), ccxt.Exchange.milliseconds())) for _ in range(2))
    assert first == second
    assert re.search(r"1760000000123", first[1])
