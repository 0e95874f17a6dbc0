"""Thumbnails: upright, in the right colours, of bounded size."""

import io
from array import array
from typing import Any, cast

import pytest
from PIL import Image, ImageCms

from mentatlab.storage.mediaworker import thumbs

RED, BLUE = (255, 0, 0), (0, 0, 255)
ROTATE_90 = 6  # EXIF: the picture's top is at its right


def saved(image: Image.Image, format_: str, **more: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format_, **more)
    file.seek(0)
    return file


def halves(mode: str = "RGB", size: tuple[int, int] = (400, 200)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def thumb(file: io.BytesIO, pixels: int = 64, format_: Any = "png") -> Image.Image:
    image = Image.open(io.BytesIO(thumbs.draw(file, pixels, format_).body))
    image.load()
    return image


def near(
    image: Image.Image, at: tuple[float, float], colour: tuple[int, ...], by: int = 24
) -> bool:
    """Whether the pixel at this part of the width and height has about this colour."""
    place = int(image.width * at[0]), int(image.height * at[1])
    found = cast(tuple[int, ...], image.getpixel(place))
    return all(abs(a - b) <= by for a, b in zip(found, colour, strict=False))


@pytest.mark.parametrize(
    "format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"]
)
def test_a_thumbnail(format_: str) -> None:
    small = thumb(saved(halves(), format_))
    assert small.size == (64, 32)
    assert small.mode == "RGB"
    assert near(small, (0.2, 0.5), RED, 60)
    assert near(small, (0.8, 0.5), BLUE, 60)


def test_it_is_never_larger() -> None:
    assert thumb(saved(halves(size=(20, 10)), "PNG")).size == (20, 10)


def test_one_that_is_very_long_keeps_a_line() -> None:
    assert thumb(saved(Image.new("RGB", (3000, 1), RED), "PNG")).size == (64, 1)


def test_webp_or_png() -> None:
    assert thumb(saved(halves(), "PNG"), format_="webp").format == "WEBP"
    assert thumb(saved(halves(), "PNG"), format_="png").format == "PNG"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_it_stands_upright(format_: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = ROTATE_90
    small = thumb(saved(halves(), format_, exif=exif))
    assert small.size == (32, 64)
    assert near(small, (0.5, 0.2), RED, 60)
    assert near(small, (0.5, 0.8), BLUE, 60)


def test_alpha_is_kept() -> None:
    clear = Image.new("RGBA", (100, 100), (0, 255, 0, 0))
    clear.paste((*RED, 255), (0, 0, 50, 100))
    for format_ in ("PNG", "WEBP"):
        small = thumb(saved(clear, format_))
        assert near(small, (0.2, 0.5), (*RED, 255))
        assert near(small, (0.8, 0.5), (0, 255, 0, 0), 255)
        assert cast(tuple[int, ...], small.getpixel((60, 30)))[3] < 10


def test_a_palette_with_a_clear_entry() -> None:
    image = Image.new("P", (100, 100), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (50, 0, 100, 100))
    small = thumb(saved(image, "PNG", transparency=0))
    assert cast(tuple[int, ...], small.getpixel((5, 30)))[3] == 0
    assert near(small, (0.8, 0.5), (*RED, 255))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes(mode: str) -> None:
    format_ = "PNG" if mode in ("1", "L", "LA", "P") else "JPEG"
    assert thumb(saved(halves(mode), format_)).size == (64, 32)


def test_cmyk_has_its_colours() -> None:
    assert near(thumb(saved(halves("CMYK"), "JPEG")), (0.2, 0.5), RED, 60)


def grey_16() -> Image.Image:
    """From black to white, in 65,536 steps."""
    return Image.frombytes(
        "I;16", (256, 64), array("H", [257 * x for x in range(256)] * 64).tobytes()
    )


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bits_are_not_cut_off(format_: str) -> None:
    small = thumb(saved(grey_16(), format_))
    assert near(small, (0.5, 0.5), (128, 128, 128))
    assert near(small, (0.98, 0.5), (250, 250, 250))


@pytest.mark.parametrize(
    "values", [[0.001 * x for x in range(256)], [-1e6 * x for x in range(256)], [7.0] * 256]
)
def test_floating_point_is_stretched_over_what_it_has(values: list[float]) -> None:
    image = Image.frombytes("F", (256, 64), array("f", values * 64).tobytes())
    small = thumb(saved(image, "TIFF"))
    low, high = small.convert("L").getextrema()
    assert (
        (low, high) == (0, 0)
        if len(set(values)) == 1
        else (cast(int, low) < 10 and cast(int, high) > 245)
    )


def test_a_colour_profile_is_applied() -> None:
    """The same numbers in a profile of another gamma are another colour on a screen."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    grey = Image.new("RGB", (50, 50), (128, 128, 128))
    assert near(
        thumb(saved(grey, "PNG", icc_profile=srgb.tobytes())), (0.5, 0.5), (128, 128, 128), 2
    )
    # of another colour space, and garbage: neither fails
    for profile in (lab.tobytes(), b"garbage"):
        assert near(thumb(saved(grey, "PNG", icc_profile=profile)), (0.5, 0.5), (128, 128, 128), 2)


def test_nothing_of_the_source_but_its_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    small = thumbs.draw(saved(halves(), "JPEG", exif=exif, comment=b"secret"), 64, "webp").body
    assert b"where I live" not in small
    assert b"secret" not in small


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (50, 50), colour) for colour in (RED, BLUE)]
    for format_ in ("GIF", "WEBP", "PNG"):
        file = saved(frames[0], format_, save_all=True, append_images=frames[1:])
        assert near(thumb(file), (0.5, 0.5), RED)


def test_over_50_megapixels_is_an_error() -> None:
    with pytest.raises(Image.DecompressionBombWarning):
        thumbs.draw(saved(Image.new("1", (10_000, 5_001)), "PNG"), 64, "png")
