"""One sound on its way from blocks of samples to segments of text."""

from collections.abc import Callable, Generator
from typing import BinaryIO

from mentatlab.sdk.media.audio import SAMPLE_RATE, open_audio
from mentatlab.sdk.media.container import Damage
from mentatlab.sdk.media.speech import FRAME, VoiceActivity, utterances
from mentatlab.sdk.media.whisper import Segment, Whisper

BLOCK_S = 32 * FRAME / SAMPLE_RATE  # about a second


class Transcription:
    """`language` is known after the first speech; `progress` gets percents."""

    def __init__(
        self,
        whisper: Whisper,
        voice: VoiceActivity,
        *,
        language: str,
        words: bool,
        progress: Callable[[float], None],
    ) -> None:
        if language:
            whisper.check_language(language)
        self.language = language
        self.damage = Damage()
        self._whisper = whisper
        self._voice = voice
        self._words = words
        self._progress = progress

    def segments(self, file: BinaryIO) -> Generator[Segment]:
        """As soon as each utterance is heard; the rest of the file is not decoded yet."""
        with open_audio(file) as audio:
            self.damage = audio.damage
            for start_s, samples in utterances(audio.blocks(BLOCK_S), self._voice):
                if not self.language:
                    self.language = self._whisper.language_of(samples)
                offset_s = audio.info.start_s + start_s
                yield from self._whisper.transcribe(
                    samples, self.language, offset_s=offset_s, words=self._words
                )
                heard_s = start_s + len(samples) / SAMPLE_RATE
                if audio.info.duration_s:
                    self._progress(min(99.0, 100 * heard_s / audio.info.duration_s))
