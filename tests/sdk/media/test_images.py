"""Images from strangers: every mode comes out as upright RGB, every bad file as one coded error."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.sdk.errors import AgentError
from mentatlab.sdk.media.images import encode_jpeg, load_image, to_rgb

MEDIA = Path(__file__).parents[3] / "examples" / "media"


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    x = np.linspace(0, 255, width, dtype=np.uint8)
    y = np.linspace(0, 255, height, dtype=np.uint8)
    table = np.stack(np.broadcast_arrays(x[None], y[:, None], np.uint8(80)), axis=-1)
    return Image.fromarray(table)


def code_of(source: Path | bytes) -> Code:
    with pytest.raises(MentatError) as caught:
        load_image(source)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_keep_every_pixel(format_: str) -> None:
    picture = load_image(encoded(gradient(), format_))
    assert picture.size == (64, 48)
    assert np.array_equal(np.asarray(picture.image), np.asarray(gradient()))


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_lossy_formats_stay_near(format_: str) -> None:
    picture = load_image(encoded(gradient(), format_, quality=95))
    difference = np.abs(np.asarray(picture.image, int) - np.asarray(gradient(), int))
    assert difference.mean() < 3


def test_a_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).image.getpixel((4, 3)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "TIFF", "PNG"])
def test_every_exif_orientation_comes_upright(orientation: int, format_: str) -> None:
    """A red upper left corner on white, stored in each of the 8 ways."""
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_image(encoded(stored, format_, exif=exif))
    assert picture.size == picture.image.size == (64, 32)
    red, green, _ = picture.image.getpixel((8, 8))  # pyright: ignore[reportGeneralTypeIssues]
    assert (red > 200, green < 60) == (True, True)


def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(gradient(1600, 800), "JPEG", exif=exif)
    picture = load_image(data, at_least=150)
    assert picture.size == (800, 1600)
    assert picture.image.size == (200, 400)


def test_other_formats_ignore_at_least() -> None:
    assert load_image(encoded(gradient(), "PNG"), at_least=8).image.size == (64, 48)


def test_16_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    picture = load_image(encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 0, 1, 127, 255]


def test_32_bit_values_are_stretched() -> None:
    values = np.array([[-1.0, 0.0, 1.0]], np.float32)
    assert np.asarray(load_image(encoded(Image.fromarray(values), "TIFF")).image)[
        0, :, 1
    ].tolist() == [
        0,
        127,
        255,
    ]


def test_a_constant_float_image_is_black_not_a_crash() -> None:
    assert np.asarray(to_rgb(Image.new("F", (2, 2), 7.0))).max() == 0


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    loaded = load_image(encoded(image, "PNG")).image
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_a_palette_with_a_transparent_colour() -> None:
    image = gradient().quantize(4)
    image.info["transparency"] = image.getpixel((0, 0))
    loaded = load_image(encoded(image, "PNG", transparency=image.getpixel((0, 0)))).image
    assert loaded.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("RGB", (8, 8), (200, 200, 200))
    image = to_rgb(grey.convert(mode))
    assert image.mode == "RGB"
    expected = 180 if mode != "1" else 0  # black and white dithers
    assert np.asarray(image).mean() > expected


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    picture = load_image(encoded(Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK"), "JPEG"))
    red, green, blue = np.asarray(picture.image).reshape(-1, 3).mean(axis=0)
    assert red > 190
    assert max(green, blue) < 70


BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "html": lambda: b"<!doctype html><html><body>404 not found</body></html>",
    "a truncated JPEG": lambda: (MEDIA / "astronaut.jpg").read_bytes()[:30_000],
    "a truncated PNG": lambda: (MEDIA / "coffee.png").read_bytes()[:100_000],
    "an allowed name, a format that is not": lambda: encoded(gradient(), "PPM"),
    "only a JPEG header": lambda: (MEDIA / "astronaut.jpg").read_bytes()[:20],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_unreadable(name: str, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(BAD[name]())
    assert code_of(file) == Code.IMAGE_UNREADABLE
    assert code_of(file.read_bytes()) == Code.IMAGE_UNREADABLE


def bomb(width: int, height: int) -> bytes:
    """A PNG of one grey: `width`×`height` pixels from a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    squeeze = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 7_100])
def test_a_bomb_is_too_large_in_both_of_pillows_bands(side: int) -> None:
    """20000² is over twice the bound (Pillow's error), 7100² only over it (Pillow's warning)."""
    data = bomb(side, side)
    assert len(data) < 100_000
    assert code_of(data) == Code.IMAGE_TOO_LARGE


def test_just_below_the_bound_is_read() -> None:
    assert load_image(bomb(7_000, 7_000)).size == (7_000, 7_000)


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "nowhere.png")


SEEDS = {
    name: encoded(gradient(16, 16), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
}


@settings(max_examples=300)
@given(
    seed=st.sampled_from(sorted(SEEDS)),
    place=st.integers(0, 2000),
    noise=st.binary(min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_raise_anything_else(seed: str, place: int, noise: bytes) -> None:
    data = bytearray(SEEDS[seed])
    place %= len(data)
    data[place : place + len(noise)] = noise
    with contextlib.suppress(Invalid, TooLarge):
        assert load_image(bytes(data)).image.mode == "RGB"


def test_an_open_file_is_read_in_place() -> None:
    with (MEDIA / "coffee.png").open("rb") as file:
        assert load_image(file).size == (600, 400)
        assert not file.closed


def test_a_fetch_that_fails_is_not_blamed_on_the_image() -> None:
    class Unreachable(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise AgentError("REFERENCE_NOT_FOUND", "gone", retryable=True)

    with pytest.raises(AgentError, match="gone"):
        load_image(Unreachable())


def test_encode_jpeg_round_trip() -> None:
    picture = load_image(encode_jpeg(gradient()))
    assert picture.size == (64, 48)
