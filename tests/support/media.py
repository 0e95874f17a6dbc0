"""Small media made on the spot."""

import io
import os
import struct
import wave
import zlib
from pathlib import Path

import av
from PIL import Image


def picture(format_: str, size: int = 200) -> bytes:
    """Noise, so that the bytes are many."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), os.urandom(size * size * 3)).save(buffer, format_)
    return buffer.getvalue()


def sound(seconds: float, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(round(seconds * 8000) * channels * 2))
    return buffer.getvalue()


def bomb_png(side: int = 20_000) -> bytes:
    """Black, one bit a pixel: small as a file, 400 megapixels when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def soundtrack(path: Path) -> bytes:
    """An MP4 that holds sound only."""
    with av.open(str(path), "w", format="mp4") as file:
        track = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(4096))
        frame.sample_rate, frame.pts = 8000, 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            file.mux(packet)
    return path.read_bytes()
