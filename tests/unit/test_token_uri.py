"""PKCS#11 URIs: what names a token, and what is refused."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.runtime.keys.uri import parse_token_uri
from tallystick.schemas.errors import ConfigError


def test_a_uri_names_a_token_and_its_module() -> None:
    # RFC 7512, section 3, with the attributes of a token and of its slot.
    uri = parse_token_uri(
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;"
        "serial=a1b2;slot-id=327;slot-description=Sun%20Metaslot?module-path=/mnt/libmypkcs11.so.1"
    )
    assert uri.token == "The Software PKCS#11 Softtoken"
    assert uri.manufacturer == "Snake Oil, Inc."
    assert (uri.model, uri.serial, uri.slot_id, uri.slot_description) == ("1.0", "a1b2", 327, "Sun Metaslot")
    assert uri.module_path == Path("/mnt/libmypkcs11.so.1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pkcs12:token=a?module-path=/m.so", "does not begin"),
        ("pkcs11:token=a", "module-path"),
        ("pkcs11:token=a?module-path=m.so", "absolute path"),
        ("pkcs11:?module-path=/m.so", "by its label or serial"),
        ("pkcs11:model=x?module-path=/m.so", "by its label or serial"),
        ("pkcs11:token=a;token=b?module-path=/m.so", "stands twice"),
        ("pkcs11:token=a;object=venue?module-path=/m.so", "'object' does not name a token"),
        ("pkcs11:token=a;vendor-x=1?module-path=/m.so", "'vendor-x' does not name a token"),
        ("pkcs11:token=a;slot-id=x?module-path=/m.so", "no decimal number"),
        ("pkcs11:token=a%zz?module-path=/m.so", "RFC 7512"),
        ("pkcs11:token=a b?module-path=/m.so", "RFC 7512"),
        ("pkcs11:token=%ff?module-path=/m.so", "not UTF-8"),
        ("pkcs11:token=a?module-path=/m%00.so", "control character"),
        ("pkcs11:token=a%0a?module-path=/m.so", "control character"),
        ("pkcs11:token=a;?module-path=/m.so", "NAME=VALUE"),
        ("pkcs11:token=a?module-path=/m.so&module-name=x", "'module-name'"),
        ("pkcs11:token=" + "a" * 2000 + "?module-path=/m.so", "1024"),
    ],
)
def test_what_names_no_token_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match="TOKEN_URI") as caught:
        parse_token_uri(text)
    assert why in caught.value.text


@pytest.mark.parametrize("attribute", ["pin-value=hunter2", "pin-source=file:/hunter2", "pin-source=|hunter2"])
def test_a_pin_in_a_uri_is_refused_and_not_repeated(attribute: str) -> None:
    with pytest.raises(ConfigError, match="TOKEN_URI") as caught:
        parse_token_uri(f"pkcs11:token=a?module-path=/m.so&{attribute}")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError) as caught:
        parse_token_uri(f"pkcs11:token=a;{attribute.replace(' ', '')}%?module-path=/m.so")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_uri_or_is_refused(text: str) -> None:
    for candidate in (text, f"pkcs11:{text}", f"pkcs11:token=a;{text}?module-path=/m.so"):
        with contextlib.suppress(ConfigError):
            assert parse_token_uri(candidate).text == candidate
