"""Event ids: ordered, unique, exact in both directions."""

from __future__ import annotations

import pytest

from tallystick.schemas.errors import Malformed
from tallystick.schemas.ids import EventIds, id_bytes, id_text, id_time_ns
from tests.support.world import NOW, seed


def test_an_id_shows_its_time_to_people() -> None:
    # RFC 9562 appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F stands for 2022-02-22 19:22:22 UTC.
    made = EventIds(bytes(8)).next(1_645_557_742_000 * 1_000_000)
    assert id_text(made).startswith("017f22e2-79b0-7")
    assert id_time_ns(id_bytes("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")) // 1_000_000 == 1_645_557_742_000


def test_a_hundred_thousand_ids_of_one_instant_rise() -> None:
    ids = EventIds(b"\xff" * 16)
    made = [ids.next(NOW) for _ in range(100_000)]
    assert made == sorted(set(made))


def test_generators_with_other_entropy_make_other_ids() -> None:
    assert EventIds(seed("a")).next(NOW) != EventIds(seed("b")).next(NOW)


def test_little_entropy_is_refused() -> None:
    with pytest.raises(Malformed, match="ID_ENTROPY"):
        EventIds(bytes(7))


@pytest.mark.parametrize("length", [0, 15, 17])
def test_bytes_of_another_length_are_no_id(length: int) -> None:
    with pytest.raises(Malformed, match="EVENT_ID"):
        id_text(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 32,
        "{00000000-0000-0000-0000-000000000000}",
        "urn:uuid:00000000-0000-0000-0000-000000000000",
        "00000000-0000-0000-0000-00000000000",
        "00000000-0000-0000-0000-00000000000g",
        "0000-00000000-0000-0000-000000000000",
    ],
)
def test_other_spellings_of_a_uuid_are_no_id(text: str) -> None:
    with pytest.raises(Malformed, match="ID_TEXT"):
        id_bytes(text)
