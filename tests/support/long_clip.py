"""A real H.264 film of any size, made in seconds: one group of pictures, again and again."""

import os
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

WIDTH, HEIGHT, FPS = 1280, 720, 25
GROUP = 25  # frames of a group, a second; the first is a key frame
_PIXELS = WIDTH * HEIGHT * 3 // 2  # bytes of a picture, YUV 4:2:0
_SHARP = {"preset": "ultrafast", "qp": "10", "x264-params": f"keyint={GROUP}:scenecut=0:bframes=0"}


class Clip(NamedTuple):
    path: Path
    size: int  # bytes
    seconds: int


def long_clip(path: Path, least_bytes: int) -> Clip:
    """An MP4 of noise, about 45 MB a second, its index behind the pictures."""
    group_path = path.with_suffix(".group.mp4")
    _encode_group(group_path)
    with av.open(str(group_path)) as group, av.open(str(path), "w") as film:
        template = group.streams.video[0]
        stream = film.add_stream_from_template(template)
        packets = [packet for packet in group.demux(template) if packet.size]
        frame_time = template.duration // GROUP
        frames = size = 0
        while size < least_bytes:
            for packet in packets:
                packet.stream, packet.pts = stream, frames * frame_time
                packet.dts, packet.time_base = packet.pts, template.time_base
                film.mux(packet)
                frames, size = frames + 1, size + packet.size
    group_path.unlink()
    return Clip(path, path.stat().st_size, frames // FPS)


def _encode_group(path: Path) -> None:
    """Of pictures cut out of the same noise at other places."""
    noise = np.frombuffer(os.urandom(_PIXELS + GROUP * WIDTH), np.uint8)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=FPS, options=_SHARP)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(GROUP):
            picture = noise[number * WIDTH :][:_PIXELS].reshape(HEIGHT * 3 // 2, WIDTH)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        film.mux(stream.encode(None))


def decodes_at(source: str, second: float) -> None:
    """The picture of that second is there and whole. `source`: a path or a URL (read in ranges)."""
    with av.open(source) as film:
        track = film.streams.video[0]
        film.seek(round(second / float(track.time_base)), stream=track)
        picture = next(frame for frame in film.decode(track) if frame.time >= second)
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert abs(picture.time - second) < 1 / FPS
    assert picture.to_ndarray().std() > 10, "noise is not one colour"
