"""Codes of API keys at the venue: whether one is fit, its rotation, exceptions."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, ERROR, NOTICE, ORDER, REFUSAL, Code

_SETTING: Final = (
    "Change the setting that the line names, on the venue's page; we ask again within ten seconds. If it must be so for a "
    "while: `tallystick key-exception`."
)
_AGAIN: Final = (
    "Nothing at once: it is tried again. If it goes on, look at the log of the component that the line names."
)
_DEFECT: Final = "It is a defect to report."
_ORDER: Final = "Give the order again on this machine: `tallystick rotate DIR`."
_EXCEPTION: Final = "Sign another one: `tallystick key-exception`."

CODES: Final = (
    Code(
        "KEY_UNFIT",
        ORDER | REFUSAL,
        "The API key at the venue is not fit, or the venue has not said what it may do: no order is signed.",
        "The text says what is wrong and which setting to change.",
    ),
    Code("KEY_CAN_WITHDRAW", NOTICE | ERROR, "The API key can withdraw.", _SETTING),
    Code("KEY_NOT_IP_BOUND", NOTICE | ERROR, "The API key is bound to no address.", _SETTING),
    Code("KEY_IP_FOREIGN", ERROR, "The API key may be used from an address that is none of ours.", _SETTING),
    Code("KEY_TOO_BROAD", NOTICE | ERROR, "The API key can more than its role needs.", _SETTING),
    Code("KEY_TOO_NARROW", NOTICE | ERROR, "The API key cannot do what its role needs.", _SETTING),
    Code("KEY_EXPIRES", NOTICE | ERROR, "The API key ends within a week.", "Rotate it: `tallystick rotate DIR`."),
    Code("KEY_EXCEPTION", ERROR, "What was given is no exception for a key.", "Correct what the line names."),
    Code("KEY_EXCEPTION_EARLY", ERROR, "The exception has not begun.", "Wait for its beginning."),
    Code("KEY_EXCEPTION_OVER", ERROR, "The exception is over.", _EXCEPTION),
    Code("KEY_EXCEPTION_SCOPE", ERROR, "The exception is for another deployment or venue.", _EXCEPTION),
    Code(
        "KEY_ROTATION",
        NOTICE,
        "A key was not changed, or cannot be now; the old one goes on.",
        "The text says why; after that is mended: `tallystick rotate DIR COMPONENT`.",
    ),
    Code(
        "NO_KEY",
        ERROR,
        "The venue refuses the new key and the old one.",
        "Make a key on the venue's page and `tallystick api-key DIR COMPONENT --set`; find out who deleted them.",
    ),
    Code("KEY_REFUSED", ERROR, "The venue refuses the new key, which it had accepted.", "See who deleted it there."),
    Code("KEY_ROOM", ERROR, "The token has too many keys.", "`tallystick keys list`, `tallystick keys destroy`."),
    Code("KEY_NAME", ERROR, "What was named is no key of the venue's.", _DEFECT),
    Code("KEY_OTHER", ERROR, "A component goes on with another key than the vault names.", _AGAIN),
    Code("KEY_UNANSWERED", ERROR, "A component did not answer the keymaster.", _AGAIN),
    Code("KEY_UNASKED", ERROR, "The venue did not say what a new key may do.", _AGAIN),
    Code("KEY_PROBE", ERROR, "What a component signed is no question about a key's rights.", _DEFECT),
    Code("KEY_EMPTY", ERROR, "A key without an id would be changed.", _DEFECT),
    Code("KEY_LABEL", ERROR, "A key's label is none of ours.", _DEFECT),
    Code("KEY_ADDRESSES", ERROR, "A key would be bound to no single address.", "Correct `rotation.addresses`."),
    Code(
        "KEY_NO_PUBLIC",
        ERROR,
        "The venue takes no public key through its API.",
        "Register it on the venue's page: `tallystick rotate` guides.",
    ),
    Code(
        "KEY_LIST",
        ERROR,
        "The venue's list does not have exactly one key that is the component's.",
        "Look at the venue's page: the component's key was deleted there, or belongs to another account.",
    ),
    Code(
        "ROTATION_STOLEN",
        ERROR,
        "`--stolen` is for keys that are changed by hand.",
        "`tallystick compromise DIR TOKEN/ID` has the keymaster delete the key first.",
    ),
    Code("KEYMASTER_AWAY", ERROR, "The keymaster does not run.", "Look at `tallystick status DIR` and its log."),
    Code(
        "ROTATION_CONFIG",
        ERROR,
        "`[rotation]` is missing or wrong.",
        "Correct it in `deployment.toml` and run `tallystick admit DIR`.",
    ),
    Code("ROTATION_ORDER", DEAD | ERROR, "What was given is no order to rotate.", _ORDER),
    Code("ROTATION_ORDER_OVER", DEAD | ERROR, "The order to rotate is older than a minute.", _ORDER),
    Code("ROTATION_ORDER_SCOPE", DEAD | ERROR, "The order to rotate is another deployment's.", _ORDER),
    Code(
        "ROTATION_STATE",
        ERROR,
        "What is kept of a rotation is damaged or another's.",
        "Move the file away; on the venue's page, delete keys `ts-…` that are not in use.",
    ),
    Code(
        "ROTATION_VAULT",
        ERROR,
        "The embedded vault has no place for a keymaster: an early version set it up.",
        "Leave `[rotation]` out and change keys by hand, or use a vault of yours.",
    ),
    Code(
        "ROTATION_WAITS",
        ERROR,
        "A rotation has not ended in two minutes; it goes on.",
        "`tallystick status DIR` says how far it is.",
    ),
)
