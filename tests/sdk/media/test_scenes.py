import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mentatlab.sdk.media.sampling import judged, scene_starts
from mentatlab.sdk.media.scenes import HEIGHT, WIDTH, Judged, SceneDetector, window_for
from mentatlab.sdk.media.video import Scaler, open_video

FPS = 25
Planes = NDArray[np.uint8]


def picture(seed: int, *, move: int = 0, light: int = 0) -> Planes:
    """A coarse random picture, shifted by `move` px and lit by `light` levels."""
    random = np.random.default_rng(seed)
    base = random.integers(30, 170)
    luma = np.kron(random.integers(0, 60, (9, 16)), np.ones((4, 4), int)) + base
    chroma = np.full((HEIGHT // 2, WIDTH), random.integers(90, 160))
    planes = np.vstack([np.roll(luma, move, axis=1) + light, chroma])
    return planes.clip(0, 255).astype(np.uint8)


def judge(pictures: list[Planes], *, window: int = 5) -> list[Judged]:
    detector = SceneDetector(window=window)
    verdicts = [detector.push(p, i / FPS) for i, p in enumerate(pictures)]
    return [v for v in verdicts if v] + detector.finish()


def cuts(pictures: list[Planes], *, window: int = 5) -> list[int]:
    return [v.frame for v in judge(pictures, window=window) if v.cut]


def shots(*lengths: int) -> list[Planes]:
    return [picture(s, move=i) for s, n in enumerate(lengths) for i in range(n)]


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(shots(1), [], id="one frame"),
        pytest.param(shots(30, 30, 30), [30, 60], id="hard cuts in moving pictures"),
        pytest.param(shots(30, 9, 30), [30, 39], id="a short scene"),
        pytest.param(shots(30, 8), [30], id="a cut near the end"),
        pytest.param(shots(8, 30), [8], id="a cut near the start"),
        pytest.param([picture(1)] * 40, [], id="a still picture"),
        pytest.param([picture(1, move=4 * i) for i in range(40)], [], id="a fast pan"),
        pytest.param([picture(1, light=2 * i) for i in range(40)], [], id="a slow fade"),
        pytest.param(
            [picture(1, move=i, light=150 * (i in (20, 21))) for i in range(40)], [], id="a flash"
        ),
        pytest.param(
            [picture(1 + (i == 20), move=i) for i in range(40)], [], id="one foreign frame"
        ),
    ],
)
def test_what_is_a_cut(pictures: list[Planes], expected: list[int]) -> None:
    assert cuts(pictures) == expected


def test_every_frame_is_judged_once_in_order() -> None:
    verdicts = judge(shots(12, 12))
    assert [v.frame for v in verdicts] == list(range(24))
    assert [v.time_s for v in verdicts] == [i / FPS for i in range(24)]
    assert verdicts[0].difference == 0
    assert verdicts[12].difference == max(v.difference for v in verdicts)


@given(st.lists(st.integers(9, 30), min_size=1, max_size=5), st.integers(3, 8))
def test_cuts_between_long_enough_shots_are_all_found(lengths: list[int], window: int) -> None:
    expected = list(itertools.accumulate(lengths))[:-1]
    assert cuts(shots(*lengths), window=window) == expected


@given(st.integers(0, 40), st.integers(1, 8))
def test_a_detector_holds_a_bounded_number_of_frames(count: int, window: int) -> None:
    detector = SceneDetector(window=window)
    told = [detector.push(picture(1), i / FPS) for i in range(count)]
    assert sum(v is not None for v in told) == max(0, count - window)
    assert len(detector.finish()) == min(count, window)


@pytest.mark.parametrize(("fps", "window"), [(25, 5), (60, 12), (1, 3), (240, 48), (None, 5)])
def test_the_window_is_a_fifth_of_a_second(fps: float | None, window: int) -> None:
    assert window_for(fps) == window


def cut_times(path: object) -> list[float]:
    with open_video(path) as video:  # pyright: ignore[reportArgumentType]
        detector = SceneDetector(window=window_for(video.info.fps))
        pairs = judged(video.frames(), detector, Scaler().planes)
        return [frame.time_s for frame, verdict in pairs if verdict.cut]


def test_real_cuts_with_shaking_camera(bikes: object) -> None:
    assert cut_times(bikes) == pytest.approx([1.20, 3.04, 5.48, 7.48, 9.68], abs=0.1)


def test_no_cut_in_one_shot(bunny: object) -> None:
    assert cut_times(bunny) == []


def test_scene_starts_of_the_demo_clip(media: object) -> None:
    with open_video(media / "clip.mp4") as video:  # pyright: ignore
        starts = scene_starts(video.frames(), SceneDetector(), Scaler().planes)
        times = [frame.time_s for frame in starts]
    assert times == pytest.approx([0, 2.4, 5.2, 7.6, 10.0], abs=0.001)
