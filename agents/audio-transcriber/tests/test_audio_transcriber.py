"""The real agent process on real speech."""

import http.server
import re
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def folded(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


ASK = "ask not what your country can do for you"


def write_wav(path: Path, *parts: bytes) -> Path:
    """16 kHz mono, 16 bit."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        for part in parts:
            file.writeframes(part)
    return path


def silence(seconds: float) -> bytes:
    return bytes(round(seconds * 16_000) * 2)


@pytest.fixture
def speech(media: Path) -> bytes:
    with wave.open(str(media / "jfk.wav"), "rb") as file:
        return file.readframes(file.getnframes())


@pytest.mark.parametrize("mode", ["one_shot", "warm"])
async def test_jfk(mode: str, one_shot: Any, warm: Any, reference: Any, media: Path) -> None:
    spec = {"audio": reference(media / "jfk.wav", "audio")}
    if mode == "one_shot":
        answer = await one_shot(spec)
        assert answer.exit_code == 0
    else:
        async with warm() as agent:
            answer = await agent.invoke(spec)
            assert (await agent.invoke(spec)).outputs == answer.outputs
    outputs = answer.outputs
    assert ASK in folded(" ".join(s["text"] for s in outputs["segments"]))
    assert answer.chunks("transcript") == outputs["segments"]
    assert outputs["language"] == "en"
    assert ASK in folded(re.sub(r"[\d:,>-]+", " ", outputs["subtitles"]))
    assert outputs["subtitles"].startswith("1\n00:00:0")
    assert outputs["vtt"].startswith("WEBVTT\n\n00:00:0")
    last = outputs["segments"][-1]
    assert 10 < last["end"] <= 11.1
    chunks = [e for e in answer.events if e["type"] == "chunk"]
    assert [c["pts"] for c in chunks] == [s["start"] for s in outputs["segments"]]
    assert answer.events[-1]["type"] == "result"
    notice = next(e for e in answer.events if e["type"] == "log")
    assert "assumes that the language is English" in notice["message"]


class Gated(http.server.BaseHTTPRequestHandler):
    """One file by ranges; what lies behind `held_from` is given only when `gate` is open."""

    data: bytes
    held_from: int
    gate: threading.Event
    asked: list[int]

    def do_GET(self) -> None:
        first, last = (int(n) for n in re.findall(r"\d+", self.headers["Range"]))
        self.asked.append(first)
        if last >= self.held_from:
            self.gate.wait(60)
        part = self.data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gated(speech: bytes, tmp_path: Path) -> Iterator[tuple[str, type[Gated]]]:
    """Two minutes by HTTP of which the second minute is held back."""
    sound = write_wav(tmp_path / "long.wav", *[speech + silence(3)] * 9)
    handler = type("Handler", (Gated,), {})
    handler.data, handler.gate, handler.asked = sound.read_bytes(), threading.Event(), []
    handler.held_from = 2 << 20
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        handler.gate.set()
        server.shutdown()
        thread.join()


async def test_segments_arrive_before_the_sound_has_been_read(
    warm: Any, reference: Any, gated: tuple[str, type[Gated]], tmp_path: Path
) -> None:
    """Half of the file is not to be had until the first segment has come out."""
    url, server = gated
    audio = {k: v for k, v in reference(Path(), "audio").items() if k != "path"} | {"get": url}
    context = {"run_id": "rn_test", "node_id": "node", "out_dir": str(tmp_path)}
    events: list[dict[str, Any]] = []
    async with warm() as agent:
        agent._send({"type": "invoke", "id": "i", "spec": {"audio": audio}, "context": context})
        while not events or events[-1]["type"] not in ("result", "error"):
            events.append(await agent.read())
            if events[-1]["type"] == "chunk" and not server.gate.is_set():
                assert max(server.asked) < server.held_from
                assert ASK in folded(events[-1]["data"]["text"])
                server.gate.set()
    assert events[-1]["type"] == "result"
    segments = events[-1]["outputs"]["segments"]
    assert folded(" ".join(s["text"] for s in segments)).count(ASK) == 9
    starts = [s["start"] for s in segments]
    assert starts == sorted(starts)
    assert 112 < starts[-1] < 126


@pytest.mark.parametrize("seconds", [0.5, 30])
async def test_no_text_is_invented_on_silence(
    one_shot: Any, reference: Any, tmp_path: Path, seconds: float
) -> None:
    path = write_wav(tmp_path / "silence.wav", silence(seconds))
    answer = await one_shot({"audio": reference(path, "audio")})
    assert answer.outputs == {
        "segments": [],
        "language": "und",
        "subtitles": "",
        "vtt": "WEBVTT\n",
    }
    assert answer.chunks("transcript") == []


async def test_pauses_keep_the_times_right(
    one_shot: Any, reference: Any, speech: bytes, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "late.wav", silence(40), speech, silence(5))
    answer = await one_shot({"audio": reference(path, "audio"), "words": True})
    segments = answer.outputs["segments"]
    assert segments[0]["start"] == pytest.approx(40, abs=0.7)
    assert segments[-1]["end"] == pytest.approx(51, abs=0.7)
    words = [w for s in segments for w in s["words"]]
    country = next(w for w in words if w["text"].startswith("country"))
    assert 46 < country["start"] < country["end"] < 48


async def test_bad_input_has_a_code(warm: Any, reference: Any, media: Path, tmp_path: Path) -> None:
    empty, page = tmp_path / "empty.mp3", tmp_path / "page.mp3"
    empty.write_bytes(b"")
    page.write_text("<html>no sound</html>")
    good = reference(media / "jfk.wav", "audio")
    async with warm() as agent:
        codes = [
            (await agent.invoke(spec)).error["code"]
            for spec in (
                {"audio": reference(empty, "audio")},
                {"audio": reference(page, "audio")},
                {"audio": reference(media / "clip.mp4", "audio")},
                {"audio": good, "language": "de"},
                {"audio": good, "model": "no-such-model"},
                {"audio": good, "words": [1]},
            )
        ]
        assert (await agent.invoke({"audio": good})).outputs["language"] == "en"  # it lives on
    assert codes == [
        "AUDIO_UNREADABLE",
        "AUDIO_UNREADABLE",
        "NO_AUDIO_STREAM",
        "BAD_PARAM",
        "MODEL_NOT_FOUND",
        "BAD_PARAM",
    ]
