"""SubRip (SRT) and WebVTT. Any text is safe: it can neither end a cue nor start a timing line.

Cues hold at most two lines of 42 characters (the usual limit of broadcasters);
longer text becomes several cues, each as long as its share of the characters.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_LINE = 42  # characters
MAX_LINES = 2


class Cue(NamedTuple):
    start_s: float
    end_s: float
    text: str


def cues(segments: Iterable[Cue]) -> Iterator[Cue]:
    """Segments of plain text → cues that fit the screen, in order, without overlap."""
    waiting: Cue | None = None
    for cue in _split(sorted(segments)):
        if waiting:
            yield waiting._replace(end_s=max(waiting.start_s, min(waiting.end_s, cue.start_s)))
        waiting = cue
    if waiting:
        yield waiting


def to_srt(segments: Iterable[Cue]) -> str:
    blocks = (
        f"{number}\n{_timing(cue, ',')}\n{_srt_text(cue.text)}\n"
        for number, cue in enumerate(cues(segments), start=1)
    )
    return "\n".join(blocks)


def to_vtt(segments: Iterable[Cue]) -> str:
    blocks = (f"{_timing(cue, '.')}\n{_vtt_text(cue.text)}\n" for cue in cues(segments))
    return "\n".join(["WEBVTT\n", *blocks])


def _split(segments: Iterable[Cue]) -> Iterator[Cue]:
    for segment in segments:
        lines = _lines(segment.text)
        parts = ["\n".join(lines[i : i + MAX_LINES]) for i in range(0, len(lines), MAX_LINES)]
        total, done = sum(map(len, parts)), 0
        length = max(0.0, segment.end_s - segment.start_s)
        for part in parts:
            start = segment.start_s + length * done / total
            done += len(part)
            yield Cue(start, segment.start_s + length * done / total, part)


def _lines(text: str) -> list[str]:
    """As few lines as fit, then as even as possible: no cue ends in a lone word."""
    flat = " ".join(text.split())
    wanted = len(textwrap.wrap(flat, MAX_LINE))
    narrowest = -(-len(flat) // max(1, wanted))
    widths = range(max(1, narrowest), MAX_LINE)
    wrapped = (textwrap.wrap(flat, width) for width in widths)
    return next((w for w in wrapped if len(w) == wanted), textwrap.wrap(flat, MAX_LINE))


def _timing(cue: Cue, decimal: str) -> str:
    start = round(max(0.0, cue.start_s) * 1000)
    end = max(round(cue.end_s * 1000), start + 1)  # players drop empty cues
    return f"{_clock(start, decimal)} --> {_clock(end, decimal)}"


def _clock(ms: int, decimal: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal}{ms:03}"


def _srt_text(text: str) -> str:
    """SRT has no escapes: an arrow becomes one character, what looks like a tag is kept apart."""
    text = text.replace("-->", "\N{RIGHTWARDS ARROW}")
    return re.sub(r"<(?=/?[A-Za-z])|\{(?=\\)", lambda m: m[0] + "\N{ZERO WIDTH SPACE}", text)


def _vtt_text(text: str) -> str:
    """WebVTT knows three escapes; with them no text holds `-->` or a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
