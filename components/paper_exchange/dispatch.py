"""One request, whichever door it came by: authenticated, parsed, done, journalled, told; in that order and in one step.

- Requests do not interleave: nothing here waits.
- From the moment that a request is known to be a key's owner's, it is journalled whatever becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from tallystick.components.paper_exchange.access import (
    Key,
    Keys,
    check_names,
    check_window,
    fingerprint,
    parse_parameters,
    permit,
    split_signature,
)
from tallystick.components.paper_exchange.call import Call, Endpoint, Keyed, Public, Signed
from tallystick.components.paper_exchange.journal import Entry, Journal
from tallystick.components.paper_exchange.orders import Refused
from tallystick.schemas.bounds import NS_PER_MS

_RATES = "returnRateLimits"
_TIMED = frozenset(("timestamp", "recvWindow"))


class Dispatch:
    """`table` holds every endpoint by method and path; `told` is called after each request with the time (Unix ms)."""

    def __init__(
        self,
        table: Mapping[str, Endpoint],
        keys: Keys,
        journal: Journal,
        clock: Callable[[], int],
        told: Callable[[int], None],
    ) -> None:
        self.table = table
        self._keys = keys
        self._journal = journal
        self._clock = clock
        self._told = told

    def rest(
        self,
        name: str,
        query: bytes,
        body: bytes,
        api_key: str | None,
        remote: str,
        headers: MutableMapping[str, str],
    ) -> Any:
        """The answer to a REST request; `query` and `body` are the bytes as they came.  Raises `Refused`, `OSError`."""
        endpoint, received_ns = self.table[name], self._clock()
        now_ms = received_ns // NS_PER_MS
        if isinstance(endpoint, Public):
            return endpoint.run(parse_parameters(query, body, allowed=endpoint.parameters), now_ms)
        if isinstance(endpoint, Keyed):
            key = self._keys.find(api_key, remote)
            parameters = parse_parameters(query, body, allowed=endpoint.parameters)
            return endpoint.run(Call(key, parameters, now_ms))
        # The bytes as they came: a signature over anything re-encoded would be another promise.
        query, body, signature = split_signature(query, body)
        key = self._keys.verify(api_key, remote, query + body, signature)

        def parameters_of() -> dict[str, str]:
            allowed = endpoint.parameters | _TIMED
            if endpoint.body:
                parse_parameters(query, allowed=allowed - endpoint.body)
            return parse_parameters(query, body, allowed=allowed)

        return self._signed(name, endpoint, key, query + body, parameters_of, received_ns, headers)

    def socket(self, name: str, parameters: dict[str, str], remote: str, session: Key | None) -> Any:
        """The answer to a request of the WebSocket API; `session`: the key that the socket is logged on with.

        Raises `Refused`, `OSError`.
        """
        endpoint, received_ns = self.table[name], self._clock()
        now_ms = received_ns // NS_PER_MS
        if isinstance(endpoint, Public):
            parameters.pop(_RATES, None)
            check_names(parameters, endpoint.parameters)
            return endpoint.run(parameters, now_ms)
        if isinstance(endpoint, Keyed):
            key = self._keys.find(parameters.pop("apiKey", None), remote)
            parameters.pop(_RATES, None)
            check_names(parameters, endpoint.parameters)
            return endpoint.run(Call(key, parameters, now_ms))
        key, payload = self.authenticate(parameters, remote, session)

        def parameters_of() -> dict[str, str]:
            check_names(parameters, endpoint.parameters | _TIMED)
            return parameters

        return self._signed(name, endpoint, key, payload, parameters_of, received_ns, {})

    def authenticate(self, parameters: dict[str, str], remote: str, session: Key | None) -> tuple[Key, bytes]:
        """Who signed a request of the WebSocket API, and what he signed; takes key and signature out of `parameters`."""
        signature = parameters.pop("signature", None)
        payload = "&".join(f"{name}={parameters[name]}" for name in sorted(parameters)).encode()
        api_key = parameters.pop("apiKey", None)
        parameters.pop(_RATES, None)  # how verbose the answer is to be
        if signature is None and session is not None and api_key in (None, session.api_key):
            return self._keys.find(session.api_key, remote), payload
        if signature is None:
            raise Refused(-1102, "Mandatory parameter 'signature' was not sent, was empty/null, or malformed.")
        return self._keys.verify(api_key, remote, payload, signature), payload

    def _signed(
        self,
        name: str,
        endpoint: Signed,
        key: Key,
        payload: bytes,
        parameters: Callable[[], dict[str, str]],
        received_ns: int,
        headers: MutableMapping[str, str],
    ) -> Any:
        call = Call(key, {}, received_ns // NS_PER_MS, headers=headers)
        verdict, text = "", ""
        try:
            call.parameters = parameters()
            check_window(call.parameters, call.now_ms)
            permit(key, endpoint.permission, call.now_ms)
            answer = endpoint.run(call)
            verdict = call.order.status if call.order is not None else "OK"
        except Refused as exc:
            verdict, text = str(exc.number), exc.text
            raise
        finally:
            if endpoint.journalled:
                named = call.parameters.get("newClientOrderId", call.parameters.get("origClientOrderId", ""))
                self._journal.append(
                    Entry(
                        time=received_ns,
                        key=fingerprint(key.api_key),
                        account=key.account,
                        request=name,
                        payload_sha256=hashlib.sha256(payload).hexdigest(),
                        client_order_id=call.order.client_id if call.order is not None else named,
                        order_id=call.order.id if call.order is not None else 0,
                        verdict=verdict,
                        text=text,
                    )
                )
            # A cancel-replace that half failed has done its other half.
            self._told(call.now_ms)
        return answer
