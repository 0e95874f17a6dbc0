import errno
import io
import resource
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge, UnsupportedMedia
from mentatlab.sdk.media.container import Limits
from mentatlab.sdk.media.sampling import every_seconds
from mentatlab.sdk.media.video import Frame, Scaler, open_video

Write = Callable[..., Path]


def read(path: Path, limits: Limits | None = None, *, keyframes_only: bool = False) -> list[Frame]:
    with open_video(path, limits or Limits()) as video:
        return list(video.frames(keyframes_only=keyframes_only))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx265"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("b.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.mpg", "mpeg2video"),
    ],
)
def test_containers_and_codecs(write_video: Write, name: str, codec: str) -> None:
    frames = read(write_video(name, codec=codec))
    assert [f.index for f in frames] == list(range(25))
    times = np.array([f.time_s for f in frames])
    assert times[0] == pytest.approx(0, abs=0.05)
    assert np.diff(times) == pytest.approx(0.04, abs=0.002)
    assert frames[0].key


def test_info(write_video: Write) -> None:
    with open_video(write_video()) as video:
        info = video.info
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 160, 96, 25.0)
    assert info.duration_s == pytest.approx(1.0)


def test_a_file_object_will_do(bikes: Path) -> None:
    with bikes.open("rb") as file, open_video(file) as video:
        assert sum(1 for _ in video.frames()) == 250


def test_variable_frame_rate_is_read_by_pts(write_video: Write) -> None:
    times_ms = [0, 40, 80, 500, 540, 2000, 2010, 2020, 3100, 3140]
    path = write_video(
        pictures=[np.full((96, 160, 3), 9 * i, np.uint8) for i in range(10)], times_ms=times_ms
    )
    frames = read(path)
    assert [f.time_s for f in frames] == pytest.approx([t / 1000 for t in times_ms], abs=0.001)
    assert [f.index for f in every_seconds(frames, 1.0)] == [0, 5, 8]


def test_key_frames_only(write_video: Write, noise_scenes: Callable[..., list[object]]) -> None:
    path = write_video(pictures=noise_scenes(30), codec_options={"g": "10", "sc_threshold": "0"})
    frames = read(path, keyframes_only=True)
    assert all(f.key for f in frames)
    assert [f.time_s for f in frames] == pytest.approx([0, 0.4, 0.8])


@pytest.mark.parametrize(
    ("rotation", "size", "corner"),
    [
        (0, (160, 96), (0, 0)),
        (90, (96, 160), (0, 159)),
        (180, (160, 96), (159, 95)),
        (-90, (96, 160), (95, 0)),
    ],
)
def test_a_turned_video_comes_upright(
    write_video: Write, rotation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:24, :40] = 255  # the upper left corner is white
    frames = read(write_video(pictures=[picture] * 3, rotation=rotation))
    shown = Scaler().picture(frames[0])
    assert shown.size == shown.image.size == size
    x, y = corner
    inner = (min(max(x, 8), size[0] - 9), min(max(y, 8), size[1] - 9))
    assert min(shown.image.getpixel(inner)) > 200  # pyright: ignore
    others = [(8, 8), (size[0] - 9, 8), (8, size[1] - 9), (size[0] - 9, size[1] - 9)]
    dark = [max(shown.image.getpixel(p)) for p in others if p != inner]  # pyright: ignore
    assert max(dark) < 60


def test_pixels_that_are_not_square_are_made_so(write_video: Write) -> None:
    frames = read(write_video(pixel_aspect=Fraction(4, 3)))
    assert Scaler().picture(frames[0]).size == (213, 96)


def test_a_picture_keeps_its_proportions_and_full_size(bunny: Path) -> None:
    with open_video(bunny) as video:
        picture = Scaler().picture(next(video.frames()), max_side=320)
    assert (picture.image.size, picture.size) == ((320, 180), (1280, 720))


def test_colours_survive(write_video: Write) -> None:
    for height, width in ((96, 160), (720, 1280)):  # BT.601, BT.709
        orange = np.full((height, width, 3), (230, 120, 40), np.uint8)
        frame = read(write_video(pictures=[orange] * 2))[0]
        shown = np.asarray(Scaler().picture(frame).image).mean(axis=(0, 1))
        assert shown == pytest.approx((230, 120, 40), abs=25)


def test_planes(bunny: Path) -> None:
    with open_video(bunny) as video:
        planes = Scaler().planes(next(video.frames()))
    assert (planes.shape, planes.dtype) == ((54, 64), np.uint8)


def refusal(path: Path, limits: Limits | None = None) -> MentatError:
    with pytest.raises(MentatError) as caught:
        read(path, limits)
    return caught.value


def test_sound_alone_has_no_video_stream(write_audio: Write) -> None:
    path = write_audio("sound.mp4", np.zeros(16_000, np.int16), codec="aac")
    error = refusal(path)
    assert isinstance(error, Invalid)
    assert error.code == Code.NO_VIDEO_STREAM
    assert error.hint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html><body>not a video</body></html>",
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"\x00\x00\x00\x20ftypisom" + bytes(400),
    ],
    ids=["empty", "html", "playlist", "concat", "no tracks"],
)
def test_other_bytes_are_unreadable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(data)
    error = refusal(path)
    assert isinstance(error, UnsupportedMedia | Invalid)
    assert error.code in (Code.VIDEO_UNREADABLE, Code.NO_VIDEO_STREAM)
    with pytest.raises(MentatError) as caught, path.open("rb") as file, open_video(file) as video:
        next(video.frames())
    assert caught.value.code == error.code


def test_a_playlist_beside_a_real_video_is_not_followed(tmp_path: Path, bikes: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXTINF:10,\n{bikes.as_uri()}\n#EXT-X-ENDLIST\n")
    assert refusal(path).code == Code.VIDEO_UNREADABLE


def test_a_codec_that_is_not_listed(write_video: Write) -> None:
    assert "'flv'" in refusal(write_video("a.avi", codec="flv")).message


def test_a_source_that_cannot_be_read_is_not_called_a_bad_video(bikes: Path) -> None:
    class Broken(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="the disk is broken"), Broken(bikes) as file:
        read(file)  # pyright: ignore[reportArgumentType]


def test_a_missing_file_is_the_callers_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(max_width=128), Code.MEDIA_TOO_LARGE),
        (Limits(max_height=64), Code.MEDIA_TOO_LARGE),
        (Limits(max_fps=24), Code.MEDIA_TOO_LARGE),
        (Limits(max_streams=1), Code.MEDIA_TOO_LARGE),
        (Limits(max_duration_s=0.5), Code.MEDIA_TOO_LONG),
    ],
)
def test_limits(write_video: Write, limits: Limits, code: Code) -> None:
    path = write_video(sound=np.zeros(16_000, np.int16))
    error = refusal(path, limits)
    assert isinstance(error, TooLarge)
    assert error.code == code


def test_time_is_limited_while_decoding_too(write_video: Write) -> None:
    """Matroska written to a pipe claims no duration."""
    path = write_video("live.mkv", options={"live": "1"})
    with open_video(path) as video:
        assert video.info.duration_s is None
    assert refusal(path, Limits(max_duration_s=0.5)).code == Code.MEDIA_TOO_LONG


def test_a_size_that_changes_in_mid_stream(
    write_video: Write, noise_scenes: Callable[..., list[object]]
) -> None:
    small = write_video("a.ts", codec="mpeg2video", pictures=noise_scenes(25))
    large = write_video(
        "b.ts", codec="mpeg2video", pictures=noise_scenes(25, width=320, height=192)
    )
    small.write_bytes(small.read_bytes() + large.read_bytes())
    frames, scaler = read(small), Scaler()
    assert {scaler.picture(f).size for f in frames} == {(160, 96), (320, 192)}
    assert {scaler.planes(f).shape for f in frames} == {(54, 64)}
    assert refusal(small, Limits(max_width=160, max_height=96)).code == Code.MEDIA_TOO_LARGE


def test_an_upright_clip_of_the_largest_size_is_within_limits(write_video: Write) -> None:
    tall = [np.zeros((160, 96, 3), np.uint8)] * 2
    limits = Limits(max_width=160, max_height=96)
    assert len(read(write_video(pictures=tall), limits)) == 2


def test_a_truncated_tail_gives_what_is_there(
    write_video: Write, noise_scenes: Callable[..., list[object]]
) -> None:
    path = write_video(
        pictures=noise_scenes(100), options={"movflags": "faststart"}, codec_options={"g": "10"}
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    frames = read(path)
    assert 10 < len(frames) < 100
    assert [f.time_s for f in frames] == pytest.approx([i / 25 for i in range(len(frames))])


def test_damage_in_the_middle_is_left_out(
    write_video: Write, noise_scenes: Callable[..., list[object]]
) -> None:
    path = write_video("a.mkv", pictures=noise_scenes(100), codec_options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    with open_video(path) as video:
        frames = list(video.frames())
    assert 50 < len(frames) <= 100


def test_a_video_without_one_decodable_picture(write_video: Write) -> None:
    path = write_video(options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    assert refusal(path).code == Code.VIDEO_UNREADABLE


def test_memory_stays_flat(write_video: Write) -> None:
    """Four times the frames, the same peak: nothing of a frame is kept."""
    picture = np.zeros((720, 1280, 3), np.uint8)
    path = write_video(pictures=[picture] * 200)
    scaler = Scaler()

    def run(count: int) -> int:
        with open_video(path) as video:
            for frame, _ in zip(video.frames(), range(count), strict=False):
                scaler.planes(frame)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    assert run(200) - run(50) < 40 * 1024  # 150 frames are 200 MiB
