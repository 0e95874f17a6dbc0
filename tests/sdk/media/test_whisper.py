import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.media.audio import SAMPLE_RATE, Samples, open_audio
from mentatlab.sdk.media.whisper import Segment, Whisper
from mentatlab.sdk.models import find_model


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper(find_model("whisper-tiny.en"), threads=2)


@pytest.fixture
def speech(media: Path) -> Samples:
    with open_audio(media / "jfk.wav") as audio:
        return np.concatenate(list(audio.blocks()))


def folded(segments: list[Segment]) -> str:
    return " ".join(re.findall(r"[a-z']+", " ".join(s.text for s in segments).lower()))


def test_jfk(whisper: Whisper, speech: Samples) -> None:
    segments = whisper.transcribe(speech, "en", offset_s=100)
    assert "ask not what your country can do for you" in folded(segments)
    assert all(100 <= s.start < s.end <= 111.001 for s in segments)
    assert not any(s.words for s in segments)
    assert whisper.transcribe(speech, "en", offset_s=100) == segments


def test_words(whisper: Whisper, speech: Samples) -> None:
    segments = whisper.transcribe(speech, "en", words=True)
    words = [w for s in segments for w in s.words]
    country = next(w for w in words if w.text.startswith("country"))
    assert 6.0 < country.start < country.end < 8.0  # he says it first at about 6.6 s
    assert all(a.start <= b.start for a, b in itertools.pairwise(words))
    assert segments[0].to_dict()["words"][0] == words[0].to_dict()


def test_silence_says_nothing(whisper: Whisper) -> None:
    assert folded(whisper.transcribe(np.zeros(5 * SAMPLE_RATE, np.float32), "en")) in ("", "you")


def test_an_english_model_knows_english_only(whisper: Whisper, speech: Samples) -> None:
    assert not whisper.multilingual
    assert whisper.language_of(speech) == "en"
    whisper.check_language("en")
    with pytest.raises(Invalid) as caught:
        whisper.check_language("de")
    assert caught.value.code == Code.BAD_PARAM
    assert caught.value.hint == "it knows en"
