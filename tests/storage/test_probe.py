import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from struct import pack

import av
import pytest
from PIL import Image

from mentatlab.protocol.pins import PinType
from mentatlab.storage import probe as probe_module
from mentatlab.storage import probe_worker
from mentatlab.storage.probe import Prober

I, A, V = PinType.IMAGE, PinType.AUDIO, PinType.VIDEO  # noqa: E741


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.aclose()


def jpeg(path: Path, size: tuple[int, int] = (48, 32)) -> Path:
    Image.new("RGB", size, "blue").save(path, "JPEG")
    return path


def film(path: Path, *, sound: bool = False) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = container.add_stream("aac", rate=48000) if sound else None
        for frame in [*(av.VideoFrame(64, 48, "yuv420p") for _ in range(25)), None]:
            container.mux(stream.encode(frame))
        if noise is not None:
            frame = av.AudioFrame("fltp", "stereo", 1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate = 48000
            container.mux([*noise.encode(frame), *noise.encode(None)])
    return path


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that says it has 10,000 × 10,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


async def test_an_image(prober: Prober, tmp_path: Path) -> None:
    found = await prober.probe(jpeg(tmp_path / "x"), I)
    assert found == {"width": 48, "height": 32, "codec": "jpeg"}


async def test_a_film(prober: Prober, tmp_path: Path) -> None:
    found = await prober.probe(film(tmp_path / "x"), V)
    assert found == {"duration": 1.0, "width": 64, "height": 48, "codec": "mpeg4", "fps": 25.0}


def test_a_film_with_sound(tmp_path: Path) -> None:
    found = probe_worker.probe(str(film(tmp_path / "x", sound=True)), "video")
    assert (found["codec"], found["audioCodec"], found["channels"]) == ("mpeg4", "aac", 2)


def test_a_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame("s16", "mono", 4000)
        frame.planes[0].update(bytes(8000))
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    found = probe_worker.probe(str(path), "audio")
    assert found.pop("channels") in (1, 2)
    assert found.pop("duration") > 0
    assert found == {"sampleRate": 8000, "codec": "pcm_s16le"}


@pytest.mark.parametrize("family", [I, A, V])
async def test_garbage_is_a_finding_not_an_error(
    prober: Prober, tmp_path: Path, family: PinType
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"garbage" * 100)
    assert list(await prober.probe(path, family)) == ["probeError"]
    assert "width" in await prober.probe(jpeg(tmp_path / "y"), I)


def test_the_codec_is_named_after_the_format_not_the_decoder(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=44100, layout="mono")
        frame = av.AudioFrame("fltp", "mono", 1152)
        frame.planes[0].update(bytes(4 * 1152))
        frame.sample_rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert probe_worker.probe(str(path), "audio")["codec"] == "mp3"  # FFmpeg decodes by "mp3float"


def test_a_track_without_a_decoder_tells_what_the_container_says(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    pcm_36_bit = pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 136, b"WAVE", b"fmt ", 16, 1, 1, 8000, 40000, 5, 36
    )
    path.write_bytes(pcm_36_bit + pack("<4sI", b"data", 100) + bytes(100))
    order = f'{{"path": "{path}", "family": "audio"}}'
    assert "probeError" not in probe_worker.answer(order)


@pytest.mark.parametrize("family", ["image", "audio"])
def test_a_finding_names_no_folder_of_the_server(tmp_path: Path, family: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"garbage" * 100)
    found = probe_worker.answer(f'{{"path": "{path}", "family": "{family}"}}')
    assert str(tmp_path) not in found["probeError"]
    assert "Error: " in found["probeError"]


def test_a_bomb_is_not_opened(tmp_path: Path) -> None:
    order = f'{{"path": "{bomb(tmp_path / "x")}", "family": "image"}}'
    assert "DecompressionBomb" in probe_worker.answer(order)["probeError"]


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "ffconcat version 1.0\nfile /etc/passwd\n"],
)
def test_playlists_are_no_media(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.m3u8"
    path.write_text(text)
    order = f'{{"path": "{path}", "family": "video"}}'
    assert "probeError" in probe_worker.answer(order)


async def test_one_process_is_reused_and_goes_with_the_prober(tmp_path: Path) -> None:
    prober = Prober()
    assert prober.pid is None
    path = jpeg(tmp_path / "x")
    await asyncio.gather(*(prober.probe(path, I) for _ in range(5)))
    pid = prober.pid
    assert pid is not None
    await prober.probe(path, I)
    assert prober.pid == pid
    await prober.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await prober.aclose()


async def test_it_is_recycled(
    prober: Prober, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "_RECYCLE", 2)
    path = jpeg(tmp_path / "x")
    pids: list[int | None] = []
    for _ in range(5):
        await prober.probe(path, I)
        pids.append(prober.pid)
    assert pids[0] == pids[1]
    assert pids[2] == pids[3]
    assert len(set(pids)) == 3


async def test_a_killed_worker_is_told_and_replaced(prober: Prober, tmp_path: Path) -> None:
    path = jpeg(tmp_path / "x")
    await prober.probe(path, I)
    assert prober.pid is not None
    os.kill(prober.pid, signal.SIGKILL)
    assert await prober.probe(path, I) == {"probeError": "the probe was killed (SIGKILL)"}
    assert (await prober.probe(path, I))["width"] == 48


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    prober = Prober(timeout_s=0.2)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found = await prober.probe(fifo, I)  # opening it never returns
    assert found == {"probeError": "it took over 0.2 s"}
    assert prober.pid is None
    await prober.aclose()


async def test_a_cancelled_probe_does_not_answer_the_next(prober: Prober, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = jpeg(tmp_path / "x")
    await prober.probe(path, I)
    hanging = asyncio.ensure_future(prober.probe(fifo, I))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert (await prober.probe(path, I))["width"] == 48


_LIMITS = textwrap.dedent("""
    import resource, sys
    sys.path.insert(0, sys.argv[1])
    import probe_worker
    probe_worker._limit_memory()
    probe_worker._limit_cpu()
    try:
        bytearray(2 << 30)
    except MemoryError:
        print("memory", flush=True)
    resource.setrlimit(resource.RLIMIT_CPU, (1, resource.RLIM_INFINITY))
    while True:
        pass
""")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no RLIMIT_AS")
def test_the_limits_bite() -> None:
    folder = Path(probe_worker.__file__).parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LIMITS, str(folder)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"memory\n"
    assert done.returncode == -signal.SIGXCPU


_SERVER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from mentatlab.protocol.pins import PinType
    from mentatlab.storage.probe import Prober

    async def main():
        prober = Prober()
        await prober.probe(Path(sys.argv[1]), PinType.IMAGE)
        print(prober.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
""")


def test_no_orphan_outlives_a_killed_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SERVER, str(jpeg(tmp_path / "x"))]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout:
        worker = int(server.stdout.readline())
        server.kill()
        server.wait()
    deadline = time.monotonic() + 20
    while is_alive(worker):
        assert time.monotonic() < deadline, "the probe process lives on"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_worker_speaks_lines(tmp_path: Path) -> None:
    order = f'{{"path": "{jpeg(tmp_path / "x")}", "family": "image"}}\n'
    done = subprocess.run(
        [sys.executable, "-P", probe_worker.__file__],
        input=order * 2,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("\n") == 2


def test_formats_outside_the_list_are_not_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PPM")
    path = tmp_path / "x"
    path.write_bytes(buffer.getvalue())
    assert "probeError" in probe_worker.answer(f'{{"path": "{path}", "family": "image"}}')
