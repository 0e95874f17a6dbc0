from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, Unavailable
from mentatlab.sdk.upload_plan import Part, Parts, Tally, Upload, goes_on, modes_for

MB = 1 << 20


def direct(size: int, part_size: int, **more: object) -> Upload:
    return Upload(
        upload_id="up_1",
        ref="blob_1",
        mode="direct",
        size=size,
        part_size=part_size,
        **more,  # type: ignore[arg-type]
    )


def part(number: int) -> Part:
    return Part(number, (number - 1) * MB, MB, f"http://store/{number}")


def test_what_asking_again_can_mend() -> None:
    assert goes_on(Unavailable(Code.SERVER_UNREACHABLE, ""))
    assert goes_on(Conflict(Code.UPLOAD_OFFSET_MISMATCH, ""))
    assert goes_on(Invalid(Code.UPLOAD_LOCKED, ""))
    assert not goes_on(NotFound(Code.UPLOAD_NOT_FOUND, ""))
    assert not goes_on(Invalid(Code.DIGEST_MISMATCH, ""))


def test_what_is_offered() -> None:
    assert modes_for(5) == ["direct", "tus", "single"]
    assert modes_for(None) == ["tus"]


@given(
    st.integers(1, 200 * MB),
    st.integers(5 * MB, 64 * MB),
    st.lists(st.sampled_from(["arrives", "fails", "refused"]), max_size=200),
)
def test_every_part_travels_until_it_has_arrived(size: int, part_size: int, fates: list[str]):
    parts = Parts(direct(size, part_size), size)
    arrived: set[int] = set()
    for fate in fates:
        if (number := parts.take()) is None:
            break
        assert number not in arrived
        if fate == "arrives":
            parts.arrived(number)
            arrived.add(number)
        else:
            parts.failed(number, refused=fate == "refused")
    while (number := parts.take()) is not None:
        parts.arrived(number)
        arrived.add(number)
    assert arrived == set(range(1, -(-size // part_size) + 1))
    assert parts.bytes_arrived == size


def test_only_what_is_missing_travels() -> None:
    parts = Parts(direct(10 * MB + 5, MB, missing_parts=[11, 3]), 10 * MB + 5)
    assert parts.bytes_arrived == 9 * MB
    assert [parts.take(), parts.take(), parts.take()] == [3, 11, None]
    parts.arrived(11)
    assert parts.bytes_arrived == 9 * MB + 5


def test_addresses_are_asked_for_in_good_time() -> None:
    parts = Parts(direct(40 * MB, MB, parts=[part(1)]), 40 * MB)
    assert parts.take() == 1
    assert parts.signed(1) == part(1)
    assert parts.take() == 2
    assert parts.signed(2) is None
    assert parts.to_sign(2) == list(range(2, 18))
    parts.sign(part(n) for n in range(2, 18))
    assert parts.signed(17) == part(17)


def test_a_signature_that_is_over_ends_all_of_its_time() -> None:
    parts = Parts(direct(4 * MB, MB, parts=[part(n) for n in range(1, 5)]), 4 * MB)
    assert parts.take() == 1
    assert parts.failed(1, refused=False)
    assert (parts.signed(1), parts.signed(2)) == (None, part(2))
    assert parts.take() == 1
    parts.failed(1, refused=True)
    assert parts.signed(2) is None


def test_when_parts_do_not_get_through() -> None:
    """At first the store may not be there at all; later it was."""
    parts = Parts(direct(4 * MB, MB), 4 * MB)
    assert [parts.failed(1, refused=False) for _ in range(2)] == [True, False]
    parts.arrived(2)
    assert [parts.failed(1, refused=False) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.integers(0, 1000)))
def test_progress_never_goes_back_and_ends_at_the_end(sent: list[int]) -> None:
    told: list[tuple[int, int | None]] = []
    tally = Tally(1000, lambda done, size: told.append((done, size)))
    for position in sent:
        tally.at(position)
    assert all(done < 1000 for done, _ in told)
    tally.done(1000)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (1000, 1000)


def test_nobody_need_listen() -> None:
    tally = Tally(None, None)
    tally.at(5)
    tally.done(7)
