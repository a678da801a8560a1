"""The registry of codes holds what product code can say, no more and no less, and the documents are made from it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tallystick.cli.explain import DENIALS, TROUBLESHOOTING, explained, rendered
from tallystick.schemas.codes import CODES, DOMAINS, find
from tallystick.schemas.errors import ConfigError
from tests.packaging.checkout import PACKAGES, ROOT, tracked_modules
from tests.packaging.codes import Used, used_codes

# The venue's own numbers: no source text of ours holds them.
VENUE_NUMBERS = "-*"
# What stands as a code and is handed on, or is no code of ours.
HANDED_ON = {
    # The paper exchange answers with Binance's numbers.
    "components/paper_exchange/access.py: number",
    "components/paper_exchange/orders.py: str(number)",
    "components/paper_exchange/trading.py: number",
    # The venue's own numbers.
    "venues/binance/answers.py: str(NOT_FOUND)",
    "venues/bybit/keys.py: code",
    # As archived.
    "record/trace.py: table['code'][0].as_py()",
    "replay/reader.py: code",
}


@cache
def said() -> Used:
    modules = [path for path in tracked_modules(*PACKAGES) if not path.startswith("schemas/codes/")]
    return used_codes({path: (ROOT / path).read_text("utf-8") for path in modules})


def test_every_code_that_is_said_is_registered_and_every_registered_one_is_said() -> None:
    unknown = {code: where for code, where in said().codes.items() if code not in CODES}
    assert unknown == {}, "add them to schemas/codes, with what they mean and what a person does"
    assert set(CODES) - set(said().codes) == {VENUE_NUMBERS}, "nothing says these any more: remove them"


def test_nothing_that_stands_as_a_code_is_unread() -> None:
    assert set(said().unread) == HANDED_ON


def test_each_code_stands_once_and_says_something() -> None:
    codes = [code for domain in DOMAINS.values() for code in domain]
    assert len(codes) == len({code.name for code in codes})
    for code in codes:
        assert code.said, code.name
        for text in (code.meaning, code.remedy):
            assert text.endswith("."), (code.name, text)
            assert "|" not in text, f"{code.name}: a table would break"
            assert len(text) > 5, (code.name, text)


ERRORS = {"schemas/errors.py": (ROOT / "schemas/errors.py").read_text("utf-8")}
MODULE = '''
from tallystick.schemas.errors import ConfigError, TallystickError

class Refused(TallystickError):
    """An error of this module."""

class Found(NamedTuple):
    line: int
    code: str

def said(text: str, code: str = "") -> None: ...
'''


@pytest.mark.parametrize(
    "line",
    [
        'def f(): raise ConfigError("PLANTED", "text")',
        'def f(): raise Refused("PLANTED", "text")',
        'def f(): raise ConfigError("NAME" if 1 else "PLANTED", "text")',
        'WHY = "PLANTED"\ndef f(): raise ConfigError(WHY, "text")',
        'TABLE = {1: ("PLANTED", "text")}\ndef f():\n    code, text = TABLE[1]\n    raise ConfigError(code, text)',
        'def f(): raise ConfigError(table.get(2, ("PLANTED", ""))[0], "text")',
        'def pairs(): yield "PLANTED", "text"\ndef f():\n    for code, text in pairs(): raise ConfigError(code, text)',
        'def f():\n    for code, text in (("PLANTED", "text"),): said(text, code)',
        'def f(): said("text", "PLANTED")',
        'def f(): said("text", code="PLANTED")',
        'def f(context): context.said("text", "PLANTED")',
        'def f(): return Found(1, "PLANTED")',
        'def f(): return new(Notice, code="PLANTED", text="text")',
        'def f(text: str, code: str = "PLANTED"): ...',
        'class Other:\n    code: Literal["PLANTED"]',
        'class Other(Refused):\n    def __init__(self): super().__init__("PLANTED", "text")',
    ],
)
def test_an_unknown_code_is_found(line: str) -> None:
    found = used_codes({**ERRORS, "new.py": f"{MODULE}\n{line}\n"})
    assert "PLANTED" in found.codes
    assert found.unread == []


def test_a_family_of_codes_is_found_as_one() -> None:
    source = 'class E(TallystickError): ...\n\ndef f(n):\n    raise E(f"PLANTED_{n}", "text")\n'
    assert "PLANTED_*" in used_codes({**ERRORS, "new.py": source}).codes


def test_what_cannot_be_read_is_reported() -> None:
    source = "class E(TallystickError): ...\n\ndef f(n):\n    raise E(g(n), 'text')\n"
    assert used_codes({**ERRORS, "new.py": source}).unread == ["new.py: g(n)"]


@pytest.mark.parametrize("name", [DENIALS, TROUBLESHOOTING])
def test_the_tables_in_the_documents_are_current(name: str) -> None:
    document = ROOT / "docs" / name
    assert document.read_text("utf-8") == rendered(document), "run `tallystick explain --markdown docs`"


def test_a_document_without_a_place_for_its_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / DENIALS).write_text("# Denials\n")
    with pytest.raises(ConfigError, match=r"DOCS.*no generated part"):
        rendered(tmp_path / DENIALS)
    with pytest.raises(ConfigError, match=r"DOCS.*cannot be read"):
        rendered(tmp_path / TROUBLESHOOTING)


def test_a_code_is_explained_with_its_meaning_its_remedy_and_its_modules() -> None:
    text = explained("NOT_ARMED")
    assert CODES["NOT_ARMED"].meaning in text
    assert "tallystick arm" in text
    assert "tallystick.components.gateway.risk" in text
    assert "tallystick.components.custody.permits" in text
    assert "schemas.codes" not in text


def test_every_code_comes_from_somewhere() -> None:
    for name in CODES:
        assert name == VENUE_NUMBERS or "Comes from: tallystick." in explained(name), name


def test_a_family_is_found_by_its_members() -> None:
    assert find("JS_10071") == CODES["JS_*"]
    assert find("JS_ANSWER") == CODES["JS_ANSWER"]
    assert find("HTTP_503") == CODES["HTTP_*"]
    assert find("-2010") == CODES["-*"]
    assert find("SESSION_REFUSED_PROOF") == CODES["SESSION_REFUSED_*"]
    assert [find(name) for name in ("JS_", "JS_X", "HTTP_*1", "SESSION_REFUSED_", "-", "", "XJS_1")] == [None] * 7


def test_an_unknown_code_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"CODE_UNKNOWN.*did you mean NOT_ARMED"):
        explained("NOT_ARMD")
    with pytest.raises(ConfigError, match=r"CODE_UNKNOWN.*lists them all"):
        explained("XYZZYX")
