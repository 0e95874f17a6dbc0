"""Where speech is in a sound: Silero VAD block by block, and windows that Whisper takes at once.

`SpeechWindows` is pure; `VoiceActivity` runs the network and keeps its state from block to block
(faster-whisper's own wrapper forgets it at every call).
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mentatlab.sdk.media.audio import SAMPLE_RATE, Samples
from mentatlab.sdk.models import Floats, Model, OnnxModel

FRAME = 512  # samples: 32 ms, what Silero judges at a time
_CONTEXT = 64  # samples before the frame that it also sees

SPEECH = 0.5  # probability that starts speech …
STILL_SPEECH = 0.35  # … and that keeps it going (Silero's usual pair)
MIN_VOICED = 5  # frames (0.16 s): a click or a cough is no word


def _frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / FRAME)


LONGEST = _frames(28.0)  # Whisper hears 30 s at once
ENOUGH = _frames(15.0)  # from here on a short pause ends the window …
FIRST_ENOUGH = _frames(6.0)  # … and the first one sooner: somebody waits for the first words
SHORT_PAUSE = _frames(0.4)
LONG_PAUSE = _frames(2.0)
PAD = _frames(0.3)  # before and after, so that no consonant is cut


class Span(NamedTuple):
    start: int  # frames
    end: int


class SpeechWindows:
    """Probabilities of speech, frame by frame, in; spans of at most `LONGEST` frames out."""

    def __init__(self) -> None:
        self._count = 0  # frames pushed
        self._free = 0  # first frame that no span holds
        self._enough = FIRST_ENOUGH
        self._start: int | None = None
        self._voice_end = 0
        self._voiced = 0
        # probability and frame, of the second half of the longest window
        self._quietest = (math.inf, 0)

    @property
    def oldest(self) -> int:
        """The first frame that a later span may hold."""
        first = self._count if self._start is None else self._start
        return max(self._free, first - PAD)

    def push(self, probability: float) -> Span | None:
        frame, self._count = self._count, self._count + 1
        if probability >= (SPEECH if self._start is None else STILL_SPEECH):
            self._hear(frame)
        if self._start is None:
            return None
        if frame - self._start >= LONGEST // 2:
            self._quietest = min(self._quietest, (probability, frame))
        pause = self._count - self._voice_end
        if pause >= (SHORT_PAUSE if self._voice_end - self._start >= self._enough else LONG_PAUSE):
            return self._close(self._voice_end + PAD)
        if self._count - self.oldest >= LONGEST:
            return self._cut(self._quietest[1])
        return None

    def finish(self) -> Span | None:
        return None if self._start is None else self._close(self._voice_end + PAD)

    def _hear(self, frame: int) -> None:
        if self._start is None:
            self._start, self._voiced, self._quietest = frame, 0, (math.inf, frame)
        self._voiced += 1
        self._voice_end = frame + 1

    def _close(self, end: int) -> Span | None:
        span = Span(self.oldest, min(end, self._count))
        self._start, self._free = None, span.end
        if self._voiced < MIN_VOICED:
            return None
        self._enough = ENOUGH
        return span

    def _cut(self, frame: int) -> Span:
        """In mid-speech, where it is quietest; the rest begins the next window."""
        span = Span(self.oldest, frame)
        self._start, self._free = (frame if self._voice_end > frame else None), frame
        self._quietest = (math.inf, frame + LONGEST // 2)
        return span


class VoiceActivity:
    """Silero VAD over one sound. `model`: the card `silero-vad`."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._h: Floats = np.zeros((1, 1, 128), np.float32)
        self._c: Floats = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    @staticmethod
    def load(model: Model) -> OnnxModel:
        """The network, to be shared by many sounds; one thread is the fastest for its size."""
        return OnnxModel(model.path, threads=1)

    def probabilities(self, samples: Samples) -> Floats:
        """Shape (n,) for n · 512 samples that follow those of the call before."""
        heard = np.concatenate([self._context, samples])
        frames = np.lib.stride_tricks.sliding_window_view(heard, _CONTEXT + FRAME)[::FRAME]
        outputs = self._model.run(input=np.ascontiguousarray(frames), h=self._h, c=self._c)
        self._h, self._c, self._context = outputs["hn"], outputs["cn"], heard[-_CONTEXT:]
        return outputs["speech_probs"].reshape(-1)


class Utterance(NamedTuple):
    start_s: float
    samples: Samples


def utterances(blocks: Iterable[Samples], voice: VoiceActivity) -> Iterator[Utterance]:
    """Speech, window by window, as soon as each is complete. Holds at most a window and a block.

    `blocks`: arrays of n · 512 samples; the last one may have any length.
    """
    windows, held, first = SpeechWindows(), np.zeros(0, np.float32), 0

    def utterance(span: Span) -> Utterance:
        start, end = span.start * FRAME, span.end * FRAME
        return Utterance(start / SAMPLE_RATE, held[start - first : end - first])

    for block in blocks:
        whole = np.pad(block, (0, -len(block) % FRAME))
        held = np.concatenate([held, whole])
        for probability in voice.probabilities(whole):
            if span := windows.push(float(probability)):
                yield utterance(span)
        held, first = held[windows.oldest * FRAME - first :], windows.oldest * FRAME
    if span := windows.finish():
        yield utterance(span)
