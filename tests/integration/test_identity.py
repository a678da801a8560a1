"""Every component proves itself as the trust root demands, session after session, in a deployment that runs."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tallystick.runtime.deployment.proof import token_file
from tallystick.schemas.methods import name_of
from tallystick.schemas.security import CredentialIssued, Notice
from tests.support.deployment import make, running
from tests.support.waiting import until

# A session lives a quarter of it.
LIFE_S = 14
DEMANDED = {
    "strategy-alpha": "spiffe-mtls+service-account",
    "strategy-beta": "spiffe-mtls+service-account",
    "execution": "spiffe-mtls+hardware-token",
    "market-data": "spiffe-mtls+api-key",
}
NAMES = ("paper-exchange", "breaker", "custody", "gateway", "execution", "strategy-alpha", "market-data")


async def test_sessions_and_certificates_are_renewed_by_each_components_method_over_many_lifetimes(
    tmp_path: Path,
) -> None:
    deployment, keystore = make(tmp_path / "desk", certificate_lifetime_s=LIFE_S)
    root = deployment.load_trust()[-1]
    assert {
        name: f"spiffe-mtls+{name_of(record.method)}"
        for name, record in root.components.items()
        if name_of(record.method) != "certificate"
    } == DEMANDED
    for name, component in deployment.bus().components.items():
        assert name_of(root.component(name).method) == component.method
    began = time.monotonic()
    async with running(deployment, keystore, *NAMES) as desk:
        assert time.monotonic() - began < 30
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
            return all(len(issued[n]) >= 4 and len({e.certificate for e in issued[n]}) >= 2 for n in NAMES)

        await until(renewed, lambda: f"four sessions each: {Counter({n: len(issued[n]) for n in NAMES})}", 30)
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
        assert len(used["used"]) >= 4
    # What nobody will show any more is not left lying about.
    assert not list(deployment.run.glob("*.token"))
