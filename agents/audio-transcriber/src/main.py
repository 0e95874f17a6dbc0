"""Speech to text: segments leave while the rest of the sound is still to be decoded."""

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
from transcription import Transcription

from mentatlab.protocol.errors import NotFound
from mentatlab.sdk import StreamingAgent
from mentatlab.sdk.media.background import in_thread
from mentatlab.sdk.media.speech import VoiceActivity
from mentatlab.sdk.media.subtitles import Cue, to_srt, to_vtt
from mentatlab.sdk.media.whisper import Segment, Whisper
from mentatlab.sdk.models import Model, OnnxModel, find_model
from mentatlab.sdk.params import read_params

PREFERRED, SMALL = "whisper-base", "whisper-tiny.en"
UNDETERMINED = "und"  # ISO 639-2: no speech was heard


class Params(msgspec.Struct, frozen=True):
    model: str = ""  # id of a model card; "" = whisper-base where it is, else whisper-tiny.en
    language: str = ""  # ISO 639-1; "" = detected once, by the first speech
    words: bool = False  # times of single words, too


class AudioTranscriber(StreamingAgent):
    def __init__(self) -> None:
        self._vad: OnnxModel | None = None
        self._whisper: Whisper | None = None

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        whisper, vad = await asyncio.to_thread(self._load, params.model)
        transcription = Transcription(
            whisper,
            VoiceActivity(vad),
            language=params.language,
            words=params.words,
            progress=self.progress,
        )
        segments = await self._stream(transcription, inputs["audio"])
        return _outputs(segments, transcription.language or UNDETERMINED)

    async def _stream(self, transcription: Transcription, audio: dict[str, Any]) -> list[Segment]:
        stream = await self.init_stream("transcript")
        sent: list[Segment] = []
        with self.open_media(audio) as file:
            async with aclosing(in_thread(transcription.segments(file))) as segments:
                async for segment in segments:
                    length = round(segment.end - segment.start, 3)
                    await self.send_chunk(
                        stream, segment.to_dict(), pts=segment.start, duration=length
                    )
                    sent.append(segment)
        if packets := transcription.damage.packets:
            self.log(f"left out {packets} damaged packets", level="warning")
        return sent

    def _load(self, name: str) -> tuple[Whisper, OnnxModel]:
        """Kept for the next invocation: in a warm process only the first one waits."""
        model = find_model(name) if name else self._default_model()
        if self._whisper is None or self._whisper.id != model.card.id:
            self._whisper = Whisper(model)
        self._vad = self._vad or VoiceActivity.load(find_model("silero-vad"))
        return self._whisper, self._vad

    def _default_model(self) -> Model:
        try:
            return find_model(PREFERRED)
        except NotFound:
            self.log(f"{PREFERRED} is not installed: {SMALL} assumes that the language is English")
            return find_model(SMALL)


def _outputs(segments: list[Segment], language: str) -> dict[str, Any]:
    cues = [Cue(s.start, s.end, s.text) for s in segments]
    return {
        "segments": [segment.to_dict() for segment in segments],
        "language": language,
        "subtitles": to_srt(cues),
        "vtt": to_vtt(cues),
    }


if __name__ == "__main__":
    AudioTranscriber.main()
