"""What decides over money, and who is given secrets, as the deployment's files say it, against what the operator signed.

The files are what the next trust root is made from; what counts is the trust root in force.  Where the two differ
nothing starts that decides over money: an edited file must not look as if it had an effect, nor have one.
"""

from __future__ import annotations

import msgspec

from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.house_rules import read_house_rules
from tallystick.runtime.deployment.signed_vault import unsigned, vault_terms
from tallystick.schemas.limits import LimitRow
from tallystick.schemas.trust import Cap, Instrument, Listing, TrustRoot, VaultTrust, Venue


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a trust root that a deployment's files say, under the trust root's names."""

    venues: dict[str, Venue]
    instruments: tuple[Instrument, ...]
    caps: tuple[Cap, ...]
    limits: tuple[LimitRow, ...]
    listings: tuple[Listing, ...]
    policy: str
    vault: VaultTrust | msgspec.UnsetType


def terms(deployment: Deployment) -> Terms:
    """What the files say now.  Raises `ConfigError`, which names file and place."""
    config = deployment.config
    venue = config.venue
    # A replay zone has no venue, and nothing in it is permitted.
    trades = "custody" in deployment.bus().components
    return Terms(
        venues={venue.name: Venue(kind=venue.api, account=venue.account, host=venue.host)} if trades else {},
        instruments=config.instruments,
        caps=config.caps if trades else (),
        limits=config.limit_rows(),
        listings=tuple(
            Listing(venue=where, symbol=symbol, strategies=names)
            for (where, symbol), names in deployment.listed.items()
        ),
        policy=read_house_rules(deployment.policy).digest.hex(),
        vault=vault_terms(deployment),
    )


def require_signed(deployment: Deployment, root: TrustRoot) -> None:
    """Raise `ConfigError` unless the files say what the operator signed in `root`; it names what differs."""
    said = terms(deployment)
    differs = [name for name in Terms.__struct_fields__ if getattr(said, name) != getattr(root, name)]
    if differs:
        raise unsigned(deployment, ", ".join(differs), root)
