from typing import Any

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
    assert calculate_resources({"resources": said}) == expected


def test_scratch_grows_with_the_media() -> None:
    medium = {**VIDEO, "ref": {**VIDEO["ref"], "size": 20 * GIB}}  # type: ignore[dict-item]
    program = AgentProgram(id="a", version="1.0.0", command=("x",), directory=None)  # type: ignore[arg-type]
    assert calculate_resources(program).scratch == GIB
    assert calculate_resources(program, {"clips": [medium, {"x": medium}]}).scratch == 120 * GIB
    assert calculate_resources(program, {"clip": VIDEO, "n": 1}).scratch == GIB


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(Invalid, match="no resource profile"):
        calculate_resources({"resources": {"profiles": ["huge"]}})
