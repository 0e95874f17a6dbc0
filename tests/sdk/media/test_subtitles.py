import itertools
import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.sdk.media.subtitles import MAX_LINE, Cue, cues, to_srt, to_vtt

SEGMENTS = st.lists(
    st.builds(
        Cue,
        st.floats(0, 360_000),
        st.floats(0, 360_000),
        st.text(max_size=300),
    ),
    max_size=6,
)


def parse(text: str, decimal: str) -> list[tuple[int, int, str]]:
    """A strict reader: blocks by blank lines, a timing line, then text. Times in ms."""
    stamp = rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(decimal)}(\d\d\d)"
    found: list[tuple[int, int, str]] = []
    for block in [b for b in text.split("\n\n") if b.strip() and b.strip() != "WEBVTT"]:
        lines = block.strip("\n").split("\n")
        if decimal == ",":
            assert lines.pop(0) == str(len(found) + 1)
        match = re.fullmatch(f"{stamp} --> {stamp}", lines[0])
        assert match, block
        h, m, s, ms, h2, m2, s2, ms2 = map(int, match.groups())
        start, end = ((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2
        found.append((start, end, "\n".join(lines[1:])))
    return found


def words(segments: list[Cue]) -> list[str]:
    return "".join(s.text for s in sorted(segments)).split()


@given(SEGMENTS)
def test_any_text_gives_subtitles_that_a_strict_reader_takes(segments: list[Cue]) -> None:
    for read in (parse(to_srt(segments), ","), parse(to_vtt(segments), ".")):
        assert all(start < end for start, end, _ in read)
        assert all("-->" not in text for _, _, text in read)
        assert all(1 <= text.count("\n") + 1 <= 2 and text.strip() for _, _, text in read)


@given(SEGMENTS)
def test_no_letter_is_lost_in_vtt(segments: list[Cue]) -> None:
    said = "".join(unescape(text) for _, _, text in parse(to_vtt(segments), "."))
    assert "".join(said.split()) == "".join("".join(s.text.split()) for s in sorted(segments))


@given(SEGMENTS)
def test_cues_are_in_order_and_do_not_overlap(segments: list[Cue]) -> None:
    shown = list(cues(segments))
    assert all(a.start_s <= a.end_s <= b.start_s for a, b in itertools.pairwise(shown))
    assert all(len(line) <= MAX_LINE for cue in shown for line in cue.text.split("\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line", ["one line"]),
        ("  spaces\n\nand\tlines  ", ["spaces and lines"]),
        (
            "ask not what your country can do for you",
            ["ask not what your country can do for you"],
        ),
        (
            "ask what you can do for your country and more",
            ["ask what you can do for\nyour country and more"],
        ),
        ("", []),
        ("x" * 50, ["x" * 25 + "\n" + "x" * 25]),
    ],
)
def test_line_breaks(text: str, expected: list[str]) -> None:
    assert [cue.text for cue in cues([Cue(0, 1, text)])] == expected


def test_long_text_becomes_cues_with_their_share_of_the_time() -> None:
    text = " ".join(["word"] * 40)  # 199 characters
    shown = list(cues([Cue(10, 20, text)]))
    assert len(shown) == 3
    assert (shown[0].start_s, shown[-1].end_s) == (10, pytest.approx(20))
    for cue in shown:
        assert cue.end_s - cue.start_s == pytest.approx(10 * len(cue.text) / 197, abs=0.2)


@pytest.mark.parametrize(
    ("text", "srt", "vtt"),
    [
        ("a --> b", "a → b", "a --&gt; b"),
        ("<b>x</b> & y", "<\u200bb>x<\u200b/b> & y", "&lt;b&gt;x&lt;/b&gt; &amp; y"),
        ("{\\an8}x", "{\u200b\\an8}x", "{\\an8}x"),
        ("1 < 2", "1 < 2", "1 &lt; 2"),
    ],
)
def test_escapes(text: str, srt: str, vtt: str) -> None:
    segments = [Cue(0, 1, text)]
    assert to_srt(segments) == f"1\n00:00:00,000 --> 00:00:01,000\n{srt}\n"
    assert to_vtt(segments) == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{vtt}\n"


def test_times() -> None:
    segments = [Cue(-1, 0.0004, "a"), Cue(3599.9996, 3600.5, "b"), Cue(3600.2, 360_000, "c")]
    assert parse(to_srt(segments), ",") == [
        (0, 1, "a"),
        (3_600_000, 3_600_200, "b"),
        (3_600_200, 360_000_000, "c"),
    ]


def test_nothing_said() -> None:
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n"
