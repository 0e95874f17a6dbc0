"""A small picture of a picture."""

import contextlib
import io
from typing import BinaryIO, cast

from PIL import Image, ImageCms, ImageOps

from .images import Drawn, Format, encode, open_image

_ENOUGH = 2  # times the wanted size: what a JPEG is decoded to, and then scaled down smoothly


def draw(file: BinaryIO, pixels: int, format_: Format) -> Drawn:
    """Of an image's first frame: upright, 8-bit sRGB, alpha kept, never enlarged; `pixels` bounds
    its longer side."""
    with open_image(file) as image:
        image.draft(image.mode, (_ENOUGH * pixels, _ENOUGH * pixels))
        image.load()
        profile = image.info.get("icc_profile")
        small = _scalable(image)
        small.thumbnail((pixels, pixels), reducing_gap=2.0)
        return encode(ImageOps.exif_transpose(_srgb(small, profile)), format_)


def _scalable(image: Image.Image) -> Image.Image:
    """In a mode that scales smoothly."""
    if image.mode in ("1", "P", "PA"):
        return _plain(image)
    if image.mode.startswith("I;16"):
        return _shifted(image, 1 / 256, 0)
    if image.mode in ("I", "F"):  # of no agreed range: from its darkest to its brightest
        low, high = cast(tuple[float, float], image.getextrema())  # of one band
        scale = 255 / (high - low or 1)
        return _shifted(image, scale, -low * scale)
    return image


def _shifted(image: Image.Image, scale: float, offset: float) -> Image.Image:
    return image.point(lambda value: value * scale + offset).convert("L")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in ("L", "RGB", "RGBA", "CMYK"):
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        with contextlib.suppress(OSError, ImageCms.PyCMSError):  # it is none, or of another kind
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            screen = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] — untyped
            if made := ImageCms.profileToProfile(image, own, screen, outputMode=mode):
                return made
    return _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
