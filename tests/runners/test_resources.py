from typing import Any

import msgspec
import pytest

from mentatlab.protocol.agent import AgentProgram, Resources
from mentatlab.protocol.errors import Invalid
from mentatlab.runners import PROFILES, calculate_resources

GIB = 1 << 30
VIDEO = {"type": "video", "ref": {"url": "mentat://default/blob_01J00000000000000000000000"}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, Resources()),
        ({"profiles": ["image_processing"]}, PROFILES["image_processing"]),
        (
            {"profiles": ["video_processing", "text_processing"], "gpu": False},
            Resources(cpu=4, memory=8 * GIB, scratch=50 * GIB, gpu=0),
        ),
        (
            {"profiles": ["text_processing"], "cpu": "250m", "memory": "3Gi", "gpu": 2},
            Resources(cpu=0.25, memory=3 * GIB, scratch=GIB, gpu=2),
        ),
        (
            {"cpu": "2", "ephemeralStorage": "10GB", "timeout_seconds": 60, "max_concurrent": 3},
            Resources(cpu=2, scratch=10**10, timeout_s=60, max_concurrent=3),
        ),
    ],
)
def test_profiles_and_explicit_values(said: dict[str, Any] | None, expected: Resources) -> None:
    got = calculate_resources({"resources": said})
    assert got.explained
    assert msgspec.structs.replace(got, explained=()) == expected


def test_scratch_grows_with_the_media() -> None:
    medium = {**VIDEO, "ref": {**VIDEO["ref"], "size": 20 * GIB}}  # type: ignore[dict-item]
    program = AgentProgram(id="a", version="1.0.0", command=("x",), directory=None)  # type: ignore[arg-type]
    assert calculate_resources(program).scratch == GIB
    assert calculate_resources(program, {"clips": [medium, {"x": medium}]}).scratch == 120 * GIB
    assert calculate_resources(program, {"clip": VIDEO, "n": 1}).scratch == GIB


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(Invalid, match="no resource profile"):
        calculate_resources({"resources": {"profiles": ["huge"]}})


def medium(type_: str, **metadata: float) -> dict[str, Any]:
    return {"type": type_, "ref": {**VIDEO["ref"], "metadata": metadata}}  # type: ignore[dict-item]


def test_memory_grows_with_pixels_and_time_with_duration_unless_the_author_set_them() -> None:
    inputs = {"v": medium("video", width=8192, height=4320, duration=7200)}
    free = calculate_resources({}, inputs)
    assert free.memory == (256 << 20) + 96 * 8192 * 4320
    assert free.timeout_s == 4 * 7200
    assert sum("input media" in why for why in free.explained) == 2
    fixed = calculate_resources({"resources": {"memory": "1Gi", "timeout_seconds": 9}}, inputs)
    assert (fixed.memory, fixed.timeout_s) == (GIB, 9)
    assert "memory 1024 MiB (manifest)" in fixed.explained


def test_what_inputs_claim_is_not_believed_blindly() -> None:
    odd = medium("image", width=float("inf"), height=-3, duration=float("nan"))
    assert calculate_resources({}, {"x": odd}).memory == GIB


def test_after_out_of_memory() -> None:
    once = Resources(memory=GIB).adapted(most=3 * GIB)
    assert once
    assert once.memory == 2 * GIB
    twice = once.adapted(most=3 * GIB)
    assert twice
    assert twice.memory == 3 * GIB
    assert "2048 → 3072" in twice.explained[-1]
    assert twice.adapted(most=3 * GIB) is None
    halved = twice.adapted(most=3 * GIB, batch=8)
    assert halved
    assert halved.batch == 4
    assert "batch 8 → 4" in halved.explained[-1]
