"""Speech to text: the typed face of faster-whisper (CTranslate2, int8), which is untyped."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import ctranslate2  # pyright: ignore[reportMissingTypeStubs]
import faster_whisper  # pyright: ignore[reportMissingTypeStubs]

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.media.audio import SAMPLE_RATE, Samples
from mentatlab.sdk.models import Model, cores_given

_SEED = 7  # decoding falls back to sampling when it loops; the same sound shall give the same text


@dataclass(frozen=True, slots=True)
class Word:
    start: float  # seconds
    end: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "text": self.text}


@dataclass(frozen=True, slots=True)
class Segment:
    start: float  # seconds
    end: float
    text: str
    words: tuple[Word, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        plain = {"start": self.start, "end": self.end, "text": self.text}
        return plain | {"words": [w.to_dict() for w in self.words]} if self.words else plain


class _Word(Protocol):
    start: float
    end: float
    word: str


class _Segment(Protocol):
    start: float
    end: float
    text: str
    words: list[_Word] | None


class Whisper:
    """A loaded model; one call at a time. `multilingual` False = it knows English only."""

    def __init__(self, model: Model, *, threads: int | None = None) -> None:
        cast(Any, ctranslate2).set_random_seed(_SEED)
        self.id = model.card.id
        self._model: Any = faster_whisper.WhisperModel(
            str(model.directory),
            device="cpu",
            compute_type="int8",
            cpu_threads=threads or cores_given(),
            local_files_only=True,
        )
        self.multilingual = bool(self._model.model.is_multilingual)

    def check_language(self, language: str) -> None:
        known = cast(list[str], self._model.supported_languages)
        if language not in known:
            raise Invalid(
                Code.BAD_PARAM,
                f"model {self.id} does not know the language {language!r}",
                hint=f"it knows {', '.join(known)}",
            )

    def language_of(self, samples: Samples) -> str:
        """ISO 639-1 code, by the first 30 s."""
        if not self.multilingual:
            return "en"
        return str(self._model.detect_language(samples)[0])

    def transcribe(
        self, samples: Samples, language: str, *, offset_s: float = 0.0, words: bool = False
    ) -> list[Segment]:
        """At most 30 s of speech → its segments, times counted from `offset_s`."""
        segments, _ = self._model.transcribe(
            samples,
            language=language,
            beam_size=5,
            temperature=(0.0, 0.2, 0.4),
            condition_on_previous_text=False,
            word_timestamps=words,
        )
        end_s = len(samples) / SAMPLE_RATE
        return [
            _segment(raw, offset_s, end_s)
            for raw in cast(Iterable[_Segment], segments)
            if raw.text.strip()
        ]


def _segment(raw: _Segment, offset_s: float, end_s: float) -> Segment:
    def at(time_s: float) -> float:
        return round(offset_s + min(float(time_s), end_s), 3)

    words = tuple(Word(at(w.start), at(w.end), w.word.strip()) for w in raw.words or ())
    return Segment(at(raw.start), at(raw.end), raw.text.strip(), words)
