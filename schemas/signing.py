"""The signing protocol: how execution asks custody for a signed exchange request, over a Unix socket.

    frame    = u32 length (big endian) ‖ msgpack, at most `MAX_FRAME` bytes
    request  = [op, id, …]      op: order, cancel, cancel_all, query, open_orders, status
    reply    = ["signed", id, method, url, headers, body, signed_at] | ["refused", id, code, text]
             | ["status", id, component, boot, trust_root, used, public_key]

`id` is the caller's number for the request; replies come in the order of the requests.  An order
carries the sealed message that holds its permit, as it stood on the bus, and nothing else that could
change what is signed, and with it the sealed message that holds the intent: two keys an order.  It is signed by
execution's session, so that nobody who merely reads the bus can have a permit used up before execution comes with it.
What does not re-encode to the same bytes is refused and ends the connection.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, TypeVar

import msgspec

from tallystick.schemas.ed25519 import SIGNATURE_BYTES
from tallystick.schemas.errors import NOT_DECODED, Malformed
from tallystick.schemas.ids import ID_BYTES
from tallystick.schemas.nats_jwt import MAX_CREDENTIAL, Signer
from tallystick.schemas.seal import max_payload
from tallystick.schemas.subjects import MAX_SUBJECT

SOCKET: Final = "custody.sock"
MAX_FRAME: Final = 65_536
# What an order's frame holds besides the two sealed messages: a credential, a subject, a signature, an id, and headers.
_ORDER_BYTES: Final = MAX_CREDENTIAL + MAX_SUBJECT + SIGNATURE_BYTES + ID_BYTES + 64
if max_payload("order.decision") + max_payload("order.intent") + _ORDER_BYTES > MAX_FRAME:
    # Else a strategy could make its orders too large to be signed, and a burst of them anybody's.
    raise RuntimeError("the largest decision and the largest intent must fit into one frame of the signing protocol")
# No statement and no login nonce of a session begins like this.
_CONTEXT: Final = b"tallystick order frame v1\0"
LENGTH: Final = struct.Struct(">I")


class _Frame(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    id: int


class SignOrder(_Frame, frozen=True, array_like=True, kw_only=True, tag="order"):
    """`["order", id, decision_id, subject, payload, intent, credential, signature]`: sign what this decision permits.

    `payload` is the sealed message of the decision, on `subject`; `intent` the one of the intent that it answers;
    `signature` is of the session that `credential` names, over `spoken`.
    """

    decision_id: bytes
    subject: str
    payload: bytes
    intent: bytes
    credential: str
    signature: bytes

    def __post_init__(self) -> None:
        if len(self.decision_id) != ID_BYTES:
            raise Malformed("FRAME", f"decision_id has {ID_BYTES} bytes, got {len(self.decision_id)}")

    def spoken(self) -> bytes:
        """What execution's session signs: the decision, by id and by message, and the intent."""
        messages = hashlib.sha256(self.payload).digest() + hashlib.sha256(self.intent).digest()
        return _CONTEXT + self.decision_id + messages


def ask_for(
    number: int, decision_id: bytes, subject: str, payload: bytes, intent: bytes, credential: str, signer: Signer
) -> SignOrder:
    """The request for an order, signed by the session (`signer`) that `credential` names."""
    unsigned = SignOrder(
        id=number,
        decision_id=decision_id,
        subject=subject,
        payload=payload,
        intent=intent,
        credential=credential,
        signature=b"",
    )
    return msgspec.structs.replace(unsigned, signature=signer.sign(unsigned.spoken()))


class SignCancel(_Frame, frozen=True, array_like=True, kw_only=True, tag="cancel"):
    """`["cancel", id, venue, symbol, client_order_id]`; `symbol` is the unified one."""

    venue: str
    symbol: str
    client_order_id: str


class SignCancelAll(_Frame, frozen=True, array_like=True, kw_only=True, tag="cancel_all"):
    """`["cancel_all", id, venue, symbol]`: every open order of one instrument."""

    venue: str
    symbol: str


class SignQuery(_Frame, frozen=True, array_like=True, kw_only=True, tag="query"):
    """`["query", id, venue, symbol, client_order_id]`: what became of an order."""

    venue: str
    symbol: str
    client_order_id: str


class SignOpenOrders(_Frame, frozen=True, array_like=True, kw_only=True, tag="open_orders"):
    """`["open_orders", id, venue, symbol]`: the open orders of one instrument."""

    venue: str
    symbol: str


class StatusRequest(_Frame, frozen=True, array_like=True, kw_only=True, tag="status"):
    """`["status", id]`: is custody there, and under which boot."""


class Signed(_Frame, frozen=True, array_like=True, kw_only=True, tag="signed"):
    """`["signed", id, method, url, headers, body, signed_at]`: send exactly this, once.

    `headers` are `[name, value]` pairs, `signed_at` the request's own time in Unix nanoseconds (a whole
    number of milliseconds): the venue refuses the request from `signed_at` plus its recvWindow on.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: str
    signed_at: int

    def __repr__(self) -> str:
        return f"Signed(id={self.id}, method={self.method!r}, signed_at={self.signed_at})"


class Refused(_Frame, frozen=True, array_like=True, kw_only=True, tag="refused"):
    """`["refused", id, code, text]`: nothing was signed."""

    code: str
    text: str


class Status(_Frame, frozen=True, array_like=True, kw_only=True, tag="status"):
    """`["status", id, component, boot, trust_root, used, public_key]`."""

    component: str
    boot: bytes
    trust_root: int
    used: int
    public_key: bytes


Request = SignOrder | SignCancel | SignCancelAll | SignQuery | SignOpenOrders | StatusRequest
Reply = Signed | Refused | Status

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, strict=True)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply, strict=True)


def encode_frame(frame: Request | Reply) -> bytes:
    """The frame with its length.  Raises `Malformed` for one above `MAX_FRAME`."""
    data = _encoder.encode(frame)
    return LENGTH.pack(frame_length(len(data))) + data


def frame_length(length: int) -> int:
    """`length` if a frame may have it.  Raises `Malformed`."""
    if not 0 < length <= MAX_FRAME:
        raise Malformed("FRAME_SIZE", f"frame of {length} bytes, limit {MAX_FRAME}")
    return length


def decode_request(data: bytes) -> Request:
    """The request of a frame (without its length).  Raises `Malformed`."""
    return _decode(_requests, data)


def decode_reply(data: bytes) -> Reply:
    """The reply of a frame (without its length).  Raises `Malformed`."""
    return _decode(_replies, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    frame_length(len(data))
    try:
        frame = decoder.decode(data)
    except (Malformed, *NOT_DECODED) as exc:
        raise Malformed("FRAME", f"not a frame of the signing protocol: {exc}") from exc
    if _encoder.encode(frame) != data:
        raise Malformed("FRAME_CANONICAL", "the frame does not re-encode to the same bytes")
    return frame
