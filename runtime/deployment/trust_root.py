"""A version of the trust root: what the deployment's files say, signed by the operator root."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec

from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import BusKeys
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import Made, method_of
from tallystick.runtime.deployment.terms import terms
from tallystick.runtime.durable import write_durably
from tallystick.runtime.keys.signers import HsmSigner
from tallystick.schemas.bounds import SECOND
from tallystick.schemas.nats_jwt import encode_key
from tallystick.schemas.trust import ROOT_KEY_NAME, ComponentTrust, TrustRoot, sign_document

TRUST_VALIDITY: Final = timedelta(days=365)


def write_trust_root(
    paths: Deployment,
    bus: topology.Bus,
    keys: BusKeys,
    root: HsmSigner,
    person: bytes,
    now: int,
    made: Made,
    number: int = 1,
) -> None:
    """Version `number` of the trust root from what the files say, signed by the operator root; with the first the key to pin.

    `made` is what components prove themselves by; `person` is the public key that arms and re-arms: no process has its token, so neither can the authority.
    """
    said = terms(paths)
    document = TrustRoot(
        deployment=paths.name,
        number=number,
        issued=now,
        expires=now + int(TRUST_VALIDITY.total_seconds()) * SECOND,
        operator_root=root.public.hex(),
        operator=person.hex(),
        core_account=encode_key("A", keys.core_account),
        components={
            name: ComponentTrust(
                role_key=encode_key("A", keys.components[name].role),
                account=encode_key("A", keys.components[name].account),
                publishes=component.publishes,
                lifetime=component.lifetime_s,
                method=method_of(paths, component, made),
            )
            for name, component in bus.components.items()
        },
        **msgspec.structs.asdict(said),
    )
    note = sign_document(document, (ROOT_KEY_NAME, root))
    write_durably(paths.trust / f"root-{number}.note", note.encode(), 0o600)
    if number == 1:
        write_durably(paths.pinned_key, f"{root.public.hex()}\n".encode(), 0o600)
