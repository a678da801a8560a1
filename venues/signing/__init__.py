"""Signing for any exchange of ccxt with keys that stay in their token.

- `schemes`: who signs how, one line an exchange, and who is refused by name.
- `handles`: what ccxt holds where it expects the secret.
- `keys`: the port to the token, and what the token stores of a secret.
- `exchange`: ccxt's classes over the port.
- `token`: the port over an open PKCS#11 token.

That an exchange can be signed does not mean that it may trade: that needs an adapter (`tallystick.venues.Adapter`).
"""

from tallystick.venues.signing.exchange import Api, Cryptography, base_class, signed_class, signed_exchange
from tallystick.venues.signing.handles import SecretBytes, SecretText, require_no_handle, secret_handle
from tallystick.venues.signing.keys import SigningKeys, mac_keys, private_key
from tallystick.venues.signing.schemes import EXCHANGES, Refused, Scheme, Signs, require_signable

__all__ = [
    "EXCHANGES",
    "Api",
    "Cryptography",
    "Refused",
    "Scheme",
    "SecretBytes",
    "SecretText",
    "SigningKeys",
    "Signs",
    "base_class",
    "mac_keys",
    "private_key",
    "require_no_handle",
    "require_signable",
    "secret_handle",
    "signed_class",
    "signed_exchange",
]
