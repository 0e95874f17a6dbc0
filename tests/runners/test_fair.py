from hypothesis import given
from hypothesis import strategies as st

from mentatlab.runners.fair import FairQueue


def drain(queue: FairQueue[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    order = []
    while queue:
        entry = queue.heads()[0]
        queue.served(entry[0], entry[1], entry)
        order.append(entry)
    return order


def filled(*entries: tuple[str, str, int]) -> FairQueue[tuple[str, str, int]]:
    queue: FairQueue[tuple[str, str, int]] = FairQueue()
    for entry in entries:
        queue.push(entry[0], entry[1], entry)
    return queue


def test_workspaces_take_turns_and_runs_inside_them() -> None:
    busy = [("a", run, n) for run in ("r1", "r2") for n in (1, 2)]
    order = drain(filled(*busy, ("b", "r9", 1)))
    assert order == [("a", "r1", 1), ("b", "r9", 1), ("a", "r2", 1), ("a", "r1", 2), ("a", "r2", 2)]


def test_who_gives_up_is_not_served() -> None:
    queue = filled(("a", "r", 1), ("a", "r", 2))
    queue.remove("a", "r", ("a", "r", 1))
    assert list(queue) == [("a", "r", 2)]
    assert drain(queue) == [("a", "r", 2)]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("rst"), st.integers()), unique=True)
)
def test_everybody_is_served_once_and_in_order_within_a_run(
    entries: list[tuple[str, str, int]],
) -> None:
    queue = filled(*entries)
    assert len(queue) == len(entries)
    order = drain(queue)
    assert sorted(order) == sorted(entries)
    for place in {e[:2] for e in entries}:
        assert [e for e in order if e[:2] == place] == [e for e in entries if e[:2] == place]
