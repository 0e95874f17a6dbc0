"""A video's frames as a stream of JPEG images, chosen by presentation time."""

from collections.abc import Generator, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec

from mentatlab.sdk import StreamingAgent
from mentatlab.sdk.media import sampling
from mentatlab.sdk.media.background import in_thread
from mentatlab.sdk.media.images import encode_jpeg
from mentatlab.sdk.media.scenes import SceneDetector, window_for
from mentatlab.sdk.media.video import Frame, Scaler, Video, open_video
from mentatlab.sdk.params import read_params

Count = Annotated[int, msgspec.Meta(ge=1)]


class Params(msgspec.Struct, frozen=True):
    """At most one of the first five; without any, `every_s` is 1."""

    every_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    fps: Annotated[float, msgspec.Meta(gt=0)] | None = None  # frames a second
    every_n: Count | None = None
    keyframes: bool = False
    scenes: bool = False
    max_frames: Count | None = None  # None = all
    max_side: Count | None = None  # px; larger frames are made smaller, None = as they are
    quality: Annotated[int, msgspec.Meta(ge=1, le=95)] = 85  # of the JPEG

    def __post_init__(self) -> None:
        switches = (self.keyframes or None, self.scenes or None)
        ways = (self.every_s, self.fps, self.every_n, *switches)
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one of every_s, fps, every_n, keyframes and scenes")


class Jpeg(NamedTuple):
    data: bytes
    width: int
    height: int
    time_s: float
    index: int  # of the video's frames, from 0


class VideoFrames(StreamingAgent):
    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        stream = await self.init_stream("frame")
        with self.open_media(inputs["video"]) as file:
            async with aclosing(in_thread(self._jpegs(file, params))) as jpegs:
                async for jpeg in jpegs:
                    size = {"width": jpeg.width, "height": jpeg.height, "frame": jpeg.index}
                    image = await self.upload_media(
                        "frame", jpeg.data, metadata={"mimeType": "image/jpeg", **size}
                    )
                    await self.send_chunk(stream, image, pts=jpeg.time_s)
        return {}

    def _jpegs(self, file: BinaryIO, params: Params) -> Generator[Jpeg]:
        with open_video(file) as video:
            scaler, duration_s = Scaler(), video.info.duration_s
            for frame in islice(chosen(video, scaler, params), params.max_frames):
                image = scaler.picture(frame, params.max_side).image
                data = encode_jpeg(image, quality=params.quality)
                yield Jpeg(data, image.width, image.height, frame.time_s, frame.index)
                if duration_s:
                    self.progress(min(99.0, 100 * frame.time_s / duration_s))
            if video.damage.packets:
                self.log(f"left out {video.damage.packets} damaged packets", level="warning")


def chosen(video: Video, scaler: Scaler, params: Params) -> Iterator[Frame]:
    frames = video.frames(keyframes_only=params.keyframes)
    if params.keyframes:
        return frames
    if params.scenes:
        detector = SceneDetector(window=window_for(video.info.fps))
        return sampling.scene_starts(frames, detector, scaler.planes)
    if params.every_n:
        return sampling.every_nth(frames, params.every_n)
    every_s = 1 / params.fps if params.fps else params.every_s or 1.0
    return sampling.every_seconds(frames, every_s)


if __name__ == "__main__":
    VideoFrames.main()
