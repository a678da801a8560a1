"""Whoever can write the deployment's files, against everything that decides over money: nothing of it counts unsigned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tallystick import infra
from tallystick.runtime.deployment.config import parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.terms import require_signed
from tallystick.schemas.errors import ConfigError, Unverified
from tallystick.schemas.trust import TrustRoot, open_successor, sign_document
from tests.support import gateway, world
from tests.support.runtime import sign_terms

POLICY = Path(infra.__file__).parent / "policies"
CONFIG = (
    gateway.CONFIG.replace("burst = 1000\nmessages_per_second = 1000\n", "collar_bps = 200\n")
    .replace('tick = "0.00000001"', 'tick = "0.0000001"')
    .replace(
        'name = "beta"\nmodule = "none"\ninstruments = ["XRP/ETH"]', 'name = "beta"\nmodule = "none"\ninstruments = []'
    )
)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "desk", parse_config(CONFIG, "deployment.toml"))


@pytest.fixture
def root(deployment: Deployment) -> TrustRoot:
    return sign_terms(deployment, world.trust_root(deployment="test"))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("collar_bps = 200", "collar_bps = 9000", "limits"),
        ('max_qty = "1000"', 'max_qty = "1001"', "limits"),
        ("[[caps]]", '[limits.strategy.alpha]\nmax_notional = "2"\n[[caps]]', "limits"),
        ("[[caps]]", '[limits.quote.ETH]\nmax_notional = "2"\n[[caps]]', "limits"),
        ('max_order = "5"', 'max_order = "50"', "caps"),
        ('tick = "0.0000001"', 'tick = "0.00000001"', "instruments"),
        ('market_price = "0.0015"', 'market_price = "0.00015"', "instruments"),
        ('host = "127.0.0.1:1"', 'host = "127.0.0.1:2"', "venues"),
        ('account = "main"', 'account = "other"', "venues, caps"),
        ("instruments = []", 'instruments = ["XRP/ETH"]', "listings"),
    ],
)
def test_an_edited_file_starts_nothing_and_is_named(
    deployment: Deployment, root: TrustRoot, old: str, new: str, what: str
) -> None:
    require_signed(deployment, root)
    assert old in CONFIG
    count = -1 if old == 'account = "main"' else 1
    edited = Deployment(deployment.directory, parse_config(CONFIG.replace(old, new, count), "deployment.toml"))
    with pytest.raises(ConfigError, match=rf"TERMS_UNSIGNED: .*deployment\.toml: {what} differ .*tallystick admit"):
        require_signed(edited, root)
    # Once the operator has signed it, it is in force.
    require_signed(edited, sign_terms(edited, root))


def _add(folder: Path) -> None:
    (folder / "mine.cedar").write_text('@id("mine")\npermit (principal, action, resource);\n')


def _change(folder: Path) -> None:
    file = next(folder.glob("*.cedar"))
    file.write_text(file.read_text() + "\n")


def _remove(folder: Path) -> None:
    (folder / "second.cedar").unlink()


@pytest.mark.parametrize("edit", [_add, _change, _remove])
def test_edited_house_rules_start_nothing(deployment: Deployment, edit: Callable[[Path], None]) -> None:
    shutil.copytree(POLICY, deployment.policy)
    (deployment.policy / "second.cedar").write_text('@id("second")\nforbid (principal, action, resource);\n')
    root = sign_terms(deployment, world.trust_root(deployment="test"))
    require_signed(deployment, root)
    edit(deployment.policy)
    with pytest.raises(ConfigError, match=r"TERMS_UNSIGNED: .*/policy: policy differ"):
        require_signed(deployment, root)


def test_nobody_makes_up_a_newer_document(root: TrustRoot) -> None:
    newer = msgspec.structs.replace(root, number=2)
    assert open_successor(sign_document(newer, ("operator-root", world.key("operator-root"))), root) == newer
    for name in ("role gateway", "operator", "thief"):
        with pytest.raises(Unverified, match="NOTE_UNSIGNED"):
            open_successor(sign_document(newer, ("operator-root", world.key(name))), root)
    other = msgspec.structs.replace(newer, deployment="another")
    with pytest.raises(Unverified, match="TRUST_ROOT_DEPLOYMENT"):
        open_successor(sign_document(other, ("operator-root", world.key("operator-root"))), root)
