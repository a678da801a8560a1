"""Every component proves itself as the trust root demands, session after session, in a deployment that runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.admit import admit
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import require_signed_methods
from tallystick.runtime.deployment.proof import api_key_file, token_file
from tallystick.runtime.keys.keystore import Keystore
from tallystick.runtime.keys.token_process import TokenProcess
from tallystick.schemas.errors import ConfigError
from tallystick.schemas.methods import CERTIFICATE, ApiKey, name_of
from tallystick.schemas.security import CredentialIssued, Notice
from tallystick.schemas.trust import ROOT_KEY_NAME, sign_document
from tests.support.command import Command
from tests.support.deployment import PIN, make, running
from tests.support.waiting import until

LIFE_S = 5
DEMANDED = {
    "strategy-alpha": "spiffe-mtls+service-account",
    "strategy-beta": "spiffe-mtls+service-account",
    "execution": "spiffe-mtls+hardware-token",
    "market-data": "spiffe-mtls+api-key",
}
NAMES = ("paper-exchange", "breaker", "custody", "gateway", "execution", "strategy-alpha", "market-data")


async def test_sessions_are_renewed_by_each_components_method_over_several_lifetimes(
    tmp_path: Path,
) -> None:
    deployment, keystore = make(tmp_path / "desk", session_lifetime_s=LIFE_S)
    root = deployment.load_trust()[-1]
    assert {
        name: f"spiffe-mtls+{name_of(record.method)}"
        for name, record in root.components.items()
        if name_of(record.method) != "certificate"
    } == DEMANDED
    for name, component in deployment.bus().components.items():
        assert name_of(root.component(name).method) == component.method
    async with running(deployment, keystore, *NAMES) as desk:
        audit = await desk.context("audit")
        issued: dict[str, list[CredentialIssued]] = defaultdict(list)
        notices: list[Notice] = []

        def note(received: Any) -> None:
            for event in received.events:
                if isinstance(event, CredentialIssued):
                    issued[received.subject.component].append(event)
                elif isinstance(event, Notice):
                    notices.append(event)

        audit.subscribe(("cred.>", "guard.authority"), note)
        audit.open()
        await audit.caught_up()

        def renewed() -> bool:
            return all(len(issued[n]) >= 3 for n in NAMES)

        await until(renewed, lambda: f"three sessions each: {Counter({n: len(issued[n]) for n in NAMES})}", 40)
        for name in NAMES:
            said = {event.method.partition(" ")[0] for event in issued[name]}
            assert said == {DEMANDED.get(name, "spiffe-mtls")}, name
            # All of them of one boot: no process was started again.
            assert len({event.boot for event in issued[name]}) == 1, name
        # Each token opened one session.
        tokens = [event.method for event in issued["strategy-alpha"]]
        assert len(set(tokens)) == len(tokens)
        assert not [n for n in notices if n.code.startswith("SESSION_REFUSED")]
        # The next one is there, for its user alone.
        path = token_file(deployment, "strategy-alpha")
        await until(path.exists, "the next token")
        assert path.stat().st_mode & 0o777 == 0o600
        used = json.loads((deployment.state("authority") / "api-key-market-data.json").read_text())
        assert len(used["used"]) >= 3
        # The issuer's process dies: another one is started, and the next token comes.
        accounts = desk.supervisor._accounts
        assert accounts is not None
        assert accounts._token is not None
        accounts._token._process.kill()
        path.unlink()
        await until(path.exists, "a token of the next process", 20)
    # What nobody will show any more is not left lying about.
    assert not list(deployment.run.glob("*.token"))


def as_before(deployment: Deployment, keystore: Keystore) -> None:
    """A deployment from before there were methods: no tokens for them, no API key, nothing in the trust root."""
    for label in (layout.ISSUER, layout.HARDWARE):
        shutil.rmtree(deployment.tokens / label)
        del keystore.secrets[layout.pin_name(label)], keystore.secrets[f"{layout.pin_name(label)}.so"]
    keystore.save()
    shutil.rmtree(deployment.state("market-data"))
    root = deployment.load_trust()[-1]
    components = {n: msgspec.structs.replace(c, method=CERTIFICATE) for n, c in root.components.items()}
    before = msgspec.structs.replace(root, components=components)
    with TokenProcess((deployment.tokens / "operator"), "operator", keystore[layout.pin_name("operator")]) as token:
        note = sign_document(before, (ROOT_KEY_NAME, token.signer(layout.KEY_OPERATOR_ROOT)))
    assert "method" not in note
    (deployment.trust / "root-1.note").write_text(note)


def test_a_deployment_from_before_gets_its_methods_with_admit_and_keeps_them(tmp_path: Path) -> None:
    deployment, keystore = make(tmp_path / "desk")
    as_before(deployment, keystore)
    assert name_of(deployment.load_trust()[-1].component("execution").method) == "certificate"
    admit(deployment, keystore, time.time_ns(), lambda _: None)
    first = deployment.load_trust()[-1]
    for name, component in deployment.bus().components.items():
        assert name_of(first.component(name).method) == component.method
    admit(deployment, Keystore.open(deployment.keystore, PIN), time.time_ns(), lambda _: None)
    again = deployment.load_trust()[-1]
    assert {n: c.method for n, c in again.components.items()} == {n: c.method for n, c in first.components.items()}
    # What was made fits what was signed.
    method = again.component("market-data").method
    assert isinstance(method, ApiKey)
    file = api_key_file(deployment, "market-data", keystore[layout.passphrase_name("market-data")])
    assert hashlib.sha256(bytes.fromhex(file.show()[0])).hexdigest() == method.first


def test_an_edited_identity_starts_nothing_and_is_named(tmp_path: Path) -> None:
    deployment, _ = make(tmp_path / "desk")
    root = deployment.load_trust()[-1]
    require_signed_methods(deployment, root)
    path = deployment.directory / layout.CONFIG_NAME
    text = path.read_text()
    path.write_text(text + f'\n[identity.execution]\nkey = "{"ab" * 32}"\n')
    with pytest.raises(ConfigError, match=r"TERMS_UNSIGNED.*identity of execution"):
        require_signed_methods(Deployment.load(deployment.directory), root)
    (deployment.directory / "keys").write_text('{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA"}]}')
    said = 'issuer = "i"\naudience = "a"\nsubject = "s-{strategy}"\ntoken_file = "t"\njwks = "keys"\n'
    path.write_text(f"{text}\n[identity.strategies]\n{said}")
    with pytest.raises(ConfigError, match=r"TERMS_UNSIGNED.*identity of strategy-alpha, strategy-beta"):
        require_signed_methods(Deployment.load(deployment.directory), root)


def test_strategies_that_are_run_one_by_one_get_tokens_until_it_is_stopped(tmp_path: Path) -> None:
    deployment, _ = make(tmp_path / "desk")
    paths = [token_file(deployment, name) for name in ("strategy-alpha", "strategy-beta")]
    command = Command(tmp_path, "tokens", deployment.directory, pin=True)
    try:
        command.until_said("tokens for strategy-alpha, strategy-beta")
        command.until(lambda: all(path.exists() for path in paths), "the tokens")
        before = paths[0].read_text()
        paths[0].unlink()
        command.until(paths[0].exists, "the next token")
        assert paths[0].read_text() != before
        assert command.ended_by(signal.SIGTERM) == 0
    finally:
        command.kill()
    assert not any(path.exists() for path in paths)
