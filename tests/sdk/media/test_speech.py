import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.sdk.media.audio import SAMPLE_RATE, Samples, open_audio
from mentatlab.sdk.media.speech import (
    FIRST_ENOUGH,
    FRAME,
    LONG_PAUSE,
    LONGEST,
    MIN_VOICED,
    PAD,
    Span,
    SpeechWindows,
    Utterance,
    VoiceActivity,
    utterances,
)
from mentatlab.sdk.models import OnnxModel, find_model


def windows(probabilities: list[float]) -> list[Span]:
    machine = SpeechWindows()
    spans = [span for p in probabilities if (span := machine.push(p))]
    last = machine.finish()
    return [*spans, last] if last else spans


def runs(*lengths: int) -> list[float]:
    """Silence, speech, silence, … of so many frames each."""
    return [float(i % 2) for i, n in enumerate(lengths) for _ in range(n)]


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([], []),
        (runs(100), []),
        (runs(20, 50, 20), [(20 - PAD, 70 + PAD)]),
        (runs(0, 50), [(0, 50)]),
        (runs(20, MIN_VOICED - 1, 100), []),  # a click
        (runs(20, 50, LONG_PAUSE - 1, 50), [(20 - PAD, 20 + 100 + LONG_PAUSE - 1)]),
        (
            runs(20, 50, LONG_PAUSE, 50),
            [(20 - PAD, 70 + PAD), (70 + LONG_PAUSE - PAD, 120 + LONG_PAUSE)],
        ),
        # after enough speech a short pause does …
        (runs(20, 480, 20, 50), [(20 - PAD, 500 + PAD), (520 - PAD, 570)]),
        # … and the first window has enough sooner than the second
        (
            runs(20, FIRST_ENOUGH, 20, 200, 20, 50),
            [
                (20 - PAD, 20 + FIRST_ENOUGH + PAD),
                (40 + FIRST_ENOUGH - PAD, 310 + FIRST_ENOUGH),
            ],
        ),
        ([0.4] * 50, []),  # too unsure to begin …
        ([0.6] * 20 + [0.4] * 30, [(0, 50)]),  # … enough to go on
    ],
)
def test_windows(probabilities: list[float], expected: list[tuple[int, int]]) -> None:
    assert windows(probabilities) == expected


def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    probabilities = [0.9] * (2 * LONGEST)
    probabilities[LONGEST - 50] = 0.4
    first, second, *_ = windows(probabilities)
    assert first == (0, LONGEST - 50)
    assert second.start == LONGEST - 50


LEVELS = st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0])


@given(st.lists(st.tuples(LEVELS, st.integers(1, 700)), max_size=8))
def test_windows_promises(parts: list[tuple[float, int]]) -> None:
    probabilities = [p for p, n in parts for _ in range(n)]
    machine, spans = SpeechWindows(), list[Span]()
    for count, probability in enumerate(probabilities):
        assert machine.oldest >= count - LONGEST  # what must be held is bounded
        oldest = machine.oldest
        if span := machine.push(probability):
            assert span.start >= oldest  # nothing is asked for that was let go
            spans.append(span)
    spans += [span for span in [machine.finish()] if span]
    assert all(0 <= s.start < s.end <= len(probabilities) for s in spans)
    assert all(s.end - s.start <= LONGEST + PAD for s in spans)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    if len(probabilities) >= MIN_VOICED and min(probabilities) >= 0.5:
        assert (spans[0].start, spans[-1].end) == (0, len(probabilities))


@pytest.fixture(scope="module")
def vad() -> OnnxModel:
    return VoiceActivity.load(find_model("silero-vad"))


@pytest.fixture
def speech(media: Path) -> Samples:
    with open_audio(media / "jfk.wav") as audio:
        return np.concatenate(list(audio.blocks()))


def blocks(samples: Samples, frames: int = 32) -> list[Samples]:
    return np.array_split(samples, range(frames * FRAME, len(samples), frames * FRAME))


@pytest.mark.parametrize("frames", [1, 7, 32])
def test_probabilities_do_not_depend_on_the_blocks(
    vad: OnnxModel, speech: Samples, frames: int
) -> None:
    whole = speech[: len(speech) // FRAME * FRAME]
    once = VoiceActivity(vad).probabilities(whole)
    voice = VoiceActivity(vad)
    pieces = np.concatenate([voice.probabilities(b) for b in blocks(whole, frames)])
    assert pieces == pytest.approx(once, abs=1e-4)
    assert (once > 0.5).mean() > 0.5


def test_utterances_of_real_speech(vad: OnnxModel, speech: Samples) -> None:
    gap = np.zeros(4 * SAMPLE_RATE, np.float32)
    sound = np.concatenate([gap, speech, gap, speech])
    found = list(utterances(blocks(sound), VoiceActivity(vad)))
    # the first window ends in the pause after "for you", the second takes the whole speech
    assert [u.start_s for u in found] == pytest.approx([4.0, 11.9, 19.0], abs=0.4)
    for utterance in found:
        start = round(utterance.start_s * SAMPLE_RATE)
        length = min(len(utterance.samples), len(sound) - start)
        assert np.array_equal(utterance.samples[:length], sound[start : start + length])


def test_an_utterance_is_told_before_the_sound_has_ended(vad: OnnxModel, speech: Samples) -> None:
    given_blocks = blocks(np.concatenate([speech, np.zeros(30 * SAMPLE_RATE, np.float32)]))
    source = iter(given_blocks)
    first = next(utterances(source, VoiceActivity(vad)))
    assert first.start_s < 1
    assert len(list(source)) > 20  # blocks of a second that nobody has asked for


@pytest.mark.parametrize("loudness", [0.0, 0.001, 0.05])
def test_no_utterance_in_silence_and_noise(vad: OnnxModel, loudness: float) -> None:
    noise = np.random.default_rng(1).normal(0, 1, 20 * SAMPLE_RATE).astype(np.float32) * loudness
    found: list[Utterance] = list(utterances(blocks(noise), VoiceActivity(vad)))
    assert found == []
