from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.agent_processes import Bench

from mentatlab.protocol.agent import PROFILES, Origin, Resources
from mentatlab.protocol.errors import Code
from mentatlab.runners import Outcome
from mentatlab.runners.ledger import LIGHT, Ledger, Need, need_of
from mentatlab.runners.machine import Machine

GIB = 1 << 30
MACHINE = Machine(cpus=2, memory=4 * GIB)
BENCH = Bench(Path())


def need(resources: Resources, **origins: Origin) -> Need | Outcome:
    return need_of(BENCH.invocation(["x"], resources=resources, origins=origins), MACHINE)


def test_what_nobody_named_is_light_until_it_has_been_raised() -> None:
    assert need(Resources()) == LIGHT
    assert need(Resources(memory=9 * GIB)) == Need(LIGHT.cpu, 4 * GIB)


def test_a_profile_shrinks_to_the_machine() -> None:
    video = PROFILES["video_processing"]
    assert need(video, cpu="profile", memory="profile") == Need(2, 4 * GIB)


@pytest.mark.parametrize(
    ("resources", "name", "words"),
    [
        (Resources(cpu=3), "cpu", "3 cores, and there are 2"),
        (Resources(memory=5 * GIB), "memory", "5120 MiB of memory, and there are 4096"),
        (Resources(gpu=1), "gpu", "1 GPUs, and there are 0"),
    ],
)
def test_more_than_the_machine_is_refused(resources: Resources, name: str, words: str) -> None:
    outcome = need(resources, **{name: "manifest"})  # type: ignore[arg-type]
    assert isinstance(outcome, Outcome)
    assert outcome.code == Code.RESOURCES_UNAVAILABLE
    assert words in outcome.message
    assert outcome.hint
    smaller = msgspec.structs.replace(resources, cpu=1, memory=GIB, gpu=0)
    assert not isinstance(need(smaller, **{name: "manifest"}), Outcome)  # type: ignore[arg-type]


_OWNERS = st.sampled_from("abc")
_NEEDS = st.builds(
    Need, cpu=st.sampled_from([0.0, 0.5, 1.0, 2.0]), memory=st.integers(0, 4), gpu=st.just(0)
)


@given(st.lists(st.tuples(_OWNERS, _NEEDS | st.none())))
def test_the_totals_are_what_is_held(steps: list[tuple[str, Need | None]]) -> None:
    ledger, held = Ledger(Machine(cpus=2, memory=4)), dict[str, Need]()
    for owner, wanted in steps:
        if wanted is None:
            ledger.drop(owner)
            held.pop(owner, None)
        else:
            ledger.hold(owner, wanted)
            held[owner] = wanted
        assert ledger.used == Need(
            sum(n.cpu for n in held.values()), sum(n.memory for n in held.values())
        )
        free = Need(2 - ledger.used.cpu, 4 - ledger.used.memory)
        if min(free) >= 0:
            assert ledger.fits(free)
        assert not ledger.fits(Need(free.cpu + 0.1, 0))
        assert ledger.fits(Need(2, 4), without=held)
