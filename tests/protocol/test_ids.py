from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.ids import new_id, ulid
from mentatlab.protocol.media import is_ref_id

TIMES = st.integers(0, (1 << 48) - 1)
RANDOM = st.binary(min_size=10, max_size=10)


def test_a_known_ulid() -> None:
    assert ulid(0, bytes(10)) == "0" * 26
    assert ulid((1 << 48) - 1, b"\xff" * 10) == "7" + "Z" * 25


@given(TIMES, RANDOM, TIMES, RANDOM)
def test_ulids_sort_by_time_and_then_randomness(a: int, x: bytes, b: int, y: bytes) -> None:
    assert (ulid(a, x) < ulid(b, y)) == ((a, x) < (b, y))


def test_new_ids_are_ref_ids_and_differ() -> None:
    first, second = new_id("blob"), new_id("blob")
    assert is_ref_id(first)
    assert first != second


def test_new_ids_sort_as_they_were_made() -> None:
    made = [new_id("rn") for _ in range(2000)]
    assert made == sorted(set(made))
