"""The operator's arming lease, in its final form: who may trade where, with which hardware key, within which caps, until when.

A lease is a signed note (`note`) whose text is canonical JSON of `ArmLease`, published on `control.arm.<component>`:

    {"kind": "tallystick-arm/2", "deployment": …, "component": "execution", "credential": "token-key",
     "hardware_key": hex, "venues": […], "caps": [{account, asset, max_order, max_hourly}…], "start": ns, "until": ns}

- Whoever acts on it verifies it himself; who brings it is not trusted.
- `credential` says what kind of credential of the operator's has signed.  A reader refuses a kind that it does not know.
- `hardware_key` is that of the component in the trust root: a lease is for one token, and void once another is named.
- `caps` are at most the trust root's.  An asset that they do not name is not moved under the lease.
- It lasts 12 hours at the most.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tallystick.schemas.errors import LeaseOver, Malformed, Unverified
from tallystick.schemas.note import open_note
from tallystick.schemas.trust import HOUR_NS, Cap, TrustRoot, decode_document

# A working day at the most.
MAX_LEASE_NS: Final = 12 * HOUR_NS


class ArmLease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's leave to trade: `component` may act at `venues` within `caps` from `start` until `until` (Unix ns)."""

    kind: Literal["tallystick-arm/2"] = "tallystick-arm/2"
    deployment: str
    component: str
    credential: Literal["token-key"] = "token-key"
    hardware_key: str
    venues: tuple[str, ...]
    caps: tuple[Cap, ...]
    start: int
    until: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.until <= self.start + MAX_LEASE_NS:
            raise Malformed("ARM_LEASE", f"from {self.start} until {self.until}: at most 12 hours")

    def cap(self, account: str, asset: str) -> Cap | None:
        """What `account` may move of `asset` under this lease; None: nothing."""
        return next((cap for cap in self.caps if (cap.account, cap.asset) == (account, asset)), None)


def read_arm_lease(note: str, root: TrustRoot, component: str) -> ArmLease:
    """The lease in `note` if an operator of `root` signed it for `component` and its token, whenever it holds.

    Raises `Malformed` or `Unverified`.
    """
    text, _ = open_note(note, root.operator_keys)
    lease = decode_document(text, ArmLease)
    if lease.deployment != root.deployment or lease.component != component:
        raise Unverified("ARM_LEASE_SCOPE", f"lease for {lease.component} of {lease.deployment}")
    key = root.hardware_key(component)
    if lease.hardware_key != key:
        raise Unverified(
            "LEASE_HARDWARE_KEY",
            f"lease for the token with key {lease.hardware_key[:16] or 'none'}, trust root {root.number} names "
            f"{key[:16] or 'none'}",
        )
    for cap in lease.caps:
        most = root.cap(cap.account, cap.asset)
        if most is None or cap.max_order > most.max_order or cap.max_hourly > most.max_hourly:
            signed = "none" if most is None else f"{most.max_order:f} an order, {most.max_hourly:f} an hour"
            raise Unverified(
                "LEASE_CAPS",
                f"{cap.asset} of {cap.account}: lease={cap.max_order:f} an order, {cap.max_hourly:f} an hour, "
                f"limit={signed} (trust root {root.number})",
            )
    if len({(cap.account, cap.asset) for cap in lease.caps}) != len(lease.caps):
        raise Malformed("LEASE_CAPS", "a lease names an asset of an account twice")
    return lease


def open_arm_lease(note: str, root: TrustRoot, component: str, now: int) -> ArmLease:
    """The lease in `note`, as `read_arm_lease`, if it holds at `now`.

    Raises `LeaseOver` where all but the time is right, `Unverified` where it has not begun.
    """
    lease = read_arm_lease(note, root, component)
    if now < lease.start:
        raise Unverified(
            "LEASE_EARLY",
            f"lease begins in {(lease.start - now) / 1e9:.3f} s by this clock, at {lease.start}, now {now}",
        )
    if now >= lease.until:
        raise LeaseOver("LEASE_EXPIRED", f"lease holds from {lease.start} until {lease.until}, now {now}")
    return lease
