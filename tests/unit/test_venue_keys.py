"""What venues say of API keys, in the form of their documentation's examples: each right too many has its name and setting.

Sources: developers.binance.com, "Get API Key Permission", "Query Sub-account API Key"; bybit-exchange.github.io/docs/v5/user,
"Get API Key Information", "Create Sub UID API Key", "Get Sub Account All API Keys".
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from typing import Any

import pytest

from tallystick.schemas.errors import ConfigError, Malformed
from tallystick.venues import NoAnswer, Rejected, binance
from tallystick.venues.binance.answers import busy_until
from tallystick.venues.binance.codes import CREDENTIAL_ERRORS
from tallystick.venues.binance.keys import BinanceKeys
from tallystick.venues.binance.keys import parse_rights as binance_rights
from tallystick.venues.bybit.keys import BybitKeys
from tallystick.venues.bybit.keys import parse_rights as bybit_rights
from tallystick.venues.keys import Done, KeyRights, KeyUnfit, Listed, NewKey, Role, defects, is_unknown, require_fit
from tests.support.world import key

NOW = 1_800_000_000 * 10**9
LABEL = "ts-0123456789abcdef"
PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
BINANCE = {
    "ipRestrict": True,
    "createTime": 1698645219000,
    "enableReading": True,
    "enableWithdrawals": False,
    "enableInternalTransfer": False,
    "enableMargin": False,
    "enableFutures": False,
    "permitsUniversalTransfer": False,
    "enableVanillaOptions": False,
    "enableFixApiTrade": False,
    "enableFixReadOnly": False,
    "enableSpotAndMarginTrading": True,
    "enablePortfolioMarginTrading": False,
}
BYBIT = {
    "id": "13770661",
    "note": "trading",
    "apiKey": "XXXXXX",
    "readOnly": 0,
    "secret": "",
    "permissions": {
        "ContractTrade": [],
        "Spot": ["SpotTrade"],
        "Wallet": [],
        "Options": [],
        "Derivatives": [],
        "CopyTrading": [],
        "BlockTrade": [],
        "Exchange": [],
        "NFT": [],
        "Affiliate": [],
        "Earn": [],
    },
    "ips": ["192.0.2.7"],
    "type": 1,
    "deadlineDay": 83,
    "expiredAt": "2028-05-15T03:21:05Z",
    "createdAt": "2022-10-16T02:24:40Z",
}


def of_binance(**changed: Any) -> KeyRights:
    return binance_rights(json.dumps(BINANCE | changed).encode())


def of_bybit(**changed: Any) -> KeyRights:
    permissions = dict[str, Any](BYBIT["permissions"]) | changed.pop("permissions", {})  # type: ignore[call-overload]
    return bybit_rights(json.dumps(BYBIT | {"permissions": permissions} | changed).encode())


def names(rights: KeyRights, role: Role = "trade", addresses: tuple[str, ...] | None = None) -> list[str]:
    return [defect.name for defect in defects(rights, role, NOW, addresses)]


def test_the_key_that_a_role_needs_is_fit() -> None:
    require_fit(of_binance(), "trade", now=NOW)
    require_fit(of_binance(enableSpotAndMarginTrading=False), "read", now=NOW)
    require_fit(of_binance(), "manage", now=NOW)
    require_fit(of_bybit(), "trade", now=NOW, addresses=("192.0.2.7",))
    require_fit(of_bybit(readOnly=1), "read", now=NOW)


@pytest.mark.parametrize(
    ("changed", "name", "setting"),
    [
        ({"enableWithdrawals": True}, "KEY_CAN_WITHDRAW enableWithdrawals", "untick 'Enable Withdrawals'"),
        ({"enableFutures": True}, "KEY_TOO_BROAD enableFutures", "untick 'Enable Futures'"),
        ({"enableMargin": True}, "KEY_TOO_BROAD enableMargin", "untick 'Enable Margin Loan, Repay & Transfer'"),
        ({"enableVanillaOptions": True}, "KEY_TOO_BROAD enableVanillaOptions", "'Enable European Options'"),
        ({"permitsUniversalTransfer": True}, "KEY_TOO_BROAD permitsUniversalTransfer", "'Permits Universal Transfer'"),
        ({"enableInternalTransfer": True}, "KEY_TOO_BROAD enableInternalTransfer", "'Enable Internal Transfer'"),
        ({"enableMoonTrading": True}, "KEY_TOO_BROAD enableMoonTrading", "untick 'enableMoonTrading'"),
        ({"ipRestrict": False}, "KEY_NOT_IP_BOUND", "'Restrict access to trusted IPs only'"),
        ({"tradingAuthorityExpirationTime": 1_800_000_000_000}, "KEY_EXPIRES", "rotate it"),
        ({"enableReading": False}, "KEY_TOO_NARROW", "tick what allows to read"),
    ],
)
def test_each_defect_at_binance_is_named_with_the_setting_to_change(
    changed: dict[str, Any], name: str, setting: str
) -> None:
    rights = of_binance(**changed)
    assert names(rights) == [name]
    with pytest.raises(KeyUnfit, match=name.partition(" ")[0]) as caught:
        require_fit(rights, "trade", now=NOW)
    assert setting in caught.value.text


@pytest.mark.parametrize("field", BINANCE)
def test_an_answer_of_binance_that_lacks_a_field_or_has_another_kind_of_value_is_none(field: str) -> None:
    lacking = {name: value for name, value in BINANCE.items() if name != field}
    with pytest.raises(Malformed, match="VENUE_ANSWER"):
        binance_rights(json.dumps(lacking).encode())
    with pytest.raises(Malformed, match="VENUE_ANSWER"):
        of_binance(**{field: "false"})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"permissions": {"Wallet": ["Withdraw"]}}, "KEY_CAN_WITHDRAW Wallet.Withdraw"),
        ({"permissions": {"ContractTrade": ["Order"]}}, "KEY_TOO_BROAD ContractTrade.Order"),
        ({"permissions": {"Moon": ["Shot"]}}, "KEY_TOO_BROAD Moon.Shot"),
        ({"ips": ["*"]}, "KEY_NOT_IP_BOUND"),
        ({"ips": []}, "KEY_NOT_IP_BOUND"),
        ({"ips": ["192.0.2.7", "198.51.100.1"]}, "KEY_IP_FOREIGN"),
        ({"expiredAt": "2027-01-16T03:21:05Z"}, "KEY_EXPIRES"),
    ],
)
def test_each_defect_at_bybit_is_named(changed: dict[str, Any], name: str) -> None:
    assert names(of_bybit(**changed), addresses=("192.0.2.7",)) == [name]


def test_a_role_that_reads_may_not_trade() -> None:
    assert names(of_binance(), "read") == ["KEY_TOO_BROAD enableSpotAndMarginTrading"]
    assert names(of_bybit(), "read") == ["KEY_TOO_BROAD Spot.SpotTrade"]


@pytest.mark.parametrize("code", sorted(CREDENTIAL_ERRORS))
def test_a_refused_credential_is_a_matter_of_security_and_no_rate_limit(code: int) -> None:
    body = json.dumps({"code": code, "msg": "Invalid API-key, IP, or permissions for action."}).encode()
    answer = binance.rights_answer(401, body)
    assert isinstance(answer, Rejected)
    assert answer.about == "credential"
    assert busy_until(401, {}, body, NOW) == 0
    assert is_unknown("binance", answer) == (code == -2015)


def test_what_binance_is_asked_says_what_its_documentation_wants() -> None:
    admin = BinanceKeys("api.binance.com", "sub@desk.example", "master", key("master"), lambda: NOW)
    made = admin.create(LABEL, "trade", ("192.0.2.7",), PEM)
    assert made.url == "https://api.binance.com/sapi/v2/sub-account/subAccountApi"
    fields = dict(urllib.parse.parse_qsl(made.body))
    signature = base64.b64decode(fields.pop("signature"))
    assert len(signature) == 64
    assert fields == {
        "email": "sub@desk.example",
        "apiName": LABEL,
        "status": "2",
        "canTrade": "true",
        "ipAddress": "192.0.2.7",
        "publicKey": PEM,
        "timestamp": str(NOW // 10**6),
        "recvWindow": "1000",
    }
    gone = urllib.parse.urlsplit(admin.delete("abc").url)
    assert gone.path == "/sapi/v1/sub-account/subAccountApi"
    assert "subAccountApiKey=abc" in gone.query
    answer = json.dumps({"apiName": LABEL, "apiKey": "vmPUZE6m", "secretKey": "", "type": "Ed25519"})
    assert admin.created(200, answer.encode()) == NewKey("vmPUZE6m", LABEL)
    row = {"email": "sub@desk.example", "apiName": LABEL, "apikey": "vmPUZE6m"}
    page = json.dumps({"total": 1, "list": [row]}).encode()
    found = admin.listed(200, page)
    assert isinstance(found, Listed)
    assert [held.label for held in found.keys] == [LABEL]
    assert admin.done(200, b"{}") == Done()


def test_what_bybit_is_asked_says_what_its_documentation_wants() -> None:
    admin = BybitKeys("api.bybit.com", 53888000, "master", lambda data: bytes(32), lambda: NOW)
    with pytest.raises(ConfigError, match="KEY_NO_PUBLIC"):
        admin.create(LABEL, "trade", ("192.0.2.7",), PEM)
    made = admin.create(LABEL, "read", ("192.0.2.7",))
    assert made.url == "https://api.bybit.com/v5/user/create-sub-api"
    assert json.loads(made.body) == {
        "subuid": 53888000,
        "note": LABEL,
        "readOnly": 1,
        "ips": "192.0.2.7",
        "permissions": {"Spot": ["SpotTrade"]},
    }
    with pytest.raises(ConfigError, match="KEY_EMPTY"):
        admin.delete("")
    assert json.loads(admin.delete("abc").body) == {"apikey": "abc"}
    refused = admin.done(200, b'{"retCode":10003,"retMsg":"API key is invalid.","result":{},"retExtInfo":{},"time":1}')
    assert isinstance(refused, Rejected)
    assert is_unknown("bybit", refused)


@pytest.mark.parametrize("status", [429, 418])
def test_a_venue_that_has_enough_of_questions_says_nothing_of_a_key(status: int) -> None:
    said = b'{"code":-1003,"msg":"Too many requests."}'
    assert binance.rights_answer(status, said) == NoAnswer("-1003", "Too many requests.")
