"""PKCS#11 URIs (RFC 7512): which token of which module.

    pkcs11:token=desk;serial=0123abcd?module-path=/opt/cloudhsm/lib/libcloudhsm_pkcs11.so

- Path attributes name a token: `token`, `serial`, `manufacturer`, `model`, `slot-id`, `slot-description`,
  `slot-manufacturer`; all that are given must fit.  Of the query, `module-path` says which module.
- `id` and `object` name a key; for a token they are refused, as is every attribute that is not listed here: a URI that
  was read differently than it was meant opens the wrong token.
- No PIN stands in a URI: it would stand in files, logs and command lines.  `pin-value` and `pin-source` are refused; the PIN
  comes from the keystore, from the vault, or from a descriptor.
- A token is named by its label or its serial at least: a bare URI would open whatever is plugged in.

A module is code that runs in the process with the keys: only a file that nobody but root and its owner, we, can write to is
loaded (`hsm`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from tallystick.schemas.errors import ConfigError

SCHEME: Final = "pkcs11:"
MAX_URI: Final = 1024
# RFC 7512, 2.3: what may stand unescaped in a value of the path and of the query.
_PATH_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*")
_QUERY_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})*")
_SLOT: Final = re.compile(r"[0-9]{1,19}")


class TokenUri(msgspec.Struct, frozen=True, kw_only=True):
    """A token and its module; "" and -1 where the URI says nothing.

    `text` is the URI as it was written.  `env` names the environment variables that the module needs: no part of the URI.
    """

    text: str
    module_path: Path
    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    slot_id: int = -1
    slot_description: str = ""
    slot_manufacturer: str = ""
    env: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


# A folder that holds a SoftHSM token, or a token of any module.
Place = Path | TokenUri

# Attribute of the URI -> field.
_FIELDS: Final = {
    name.replace("_", "-"): name
    for name in ("token", "serial", "manufacturer", "model", "slot_description", "slot_manufacturer")
}


def parse_token_uri(text: str) -> TokenUri:
    """The token that a URI names.  Raises `ConfigError`, which repeats nothing of a PIN."""
    if not text.startswith(SCHEME) or len(text) > MAX_URI:
        raise _refused(f"does not begin with {SCHEME} or has more than {MAX_URI} characters")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    values = _attributes(path, ";", _PATH_VALUE) | _attributes(query, "&", _QUERY_VALUE)
    for name in ("pin-value", "pin-source"):
        if name in values:
            raise _refused(f"{name} is not taken: a PIN comes from the keystore, the vault or a descriptor")
    module = values.pop("module-path", "")
    if not Path(module).is_absolute():
        raise _refused("module-path must name the PKCS#11 module by an absolute path (?module-path=/…)")
    slot = values.pop("slot-id", "")
    if slot and not _SLOT.fullmatch(slot):
        raise _refused(f"slot-id {slot[:20]!r} is no decimal number")
    unknown = sorted(values.keys() - _FIELDS.keys())
    if unknown:
        raise _refused(f"{unknown[0]!r} does not name a token; known are {', '.join([*_FIELDS, 'slot-id'])}")
    fields: dict[str, Any] = {_FIELDS[name]: value for name, value in values.items()}
    if not (fields.get("token") or fields.get("serial")):
        raise _refused("it must name the token by its label or serial (token=… or serial=…)")
    return TokenUri(text=text, module_path=Path(module), slot_id=int(slot) if slot else -1, **fields)


def _attributes(part: str, separator: str, allowed: re.Pattern[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for attribute in part.split(separator) if part else ():
        name, equals, value = attribute.partition("=")
        # The value may be a PIN: an error names the attribute alone.
        if not equals or not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name) or not allowed.fullmatch(value):
            raise _refused(f"an attribute is not NAME=VALUE in the characters of RFC 7512 ({name[:40]!r})")
        if name in found:
            raise _refused(f"{name} stands twice")
        try:
            found[name] = unquote_to_bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise _refused(f"{name} is not UTF-8") from None
        if not found[name].isprintable():
            raise _refused(f"{name} holds a control character")
    return found


def _refused(why: str) -> ConfigError:
    return ConfigError("TOKEN_URI", f"not a PKCS#11 URI of a token: {why}")
