"""Still pictures."""

import io
import warnings
from typing import Any, BinaryIO, Literal, NamedTuple

from PIL import Image, ImageFile

Format = Literal["webp", "png"]

MAX_PIXELS = 50_000_000
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """From its header; over 50 Mpx is an error."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file, formats=_FORMATS)


def probe(file: BinaryIO) -> dict[str, Any]:
    """`width height codec`."""
    with open_image(file) as image:
        return {"width": image.width, "height": image.height, "codec": str(image.format).lower()}


class Drawn(NamedTuple):
    found: dict[str, Any]
    body: bytes


def encode(image: Image.Image, format_: Format) -> Drawn:
    """RGB or RGBA, as a file; nothing but the pixels is kept."""
    bare = Image.new(image.mode, image.size)
    bare.paste(image)
    made = io.BytesIO()
    bare.save(made, format_, quality=80)
    found = {"width": image.width, "height": image.height, "codec": format_}
    return Drawn(found, made.getvalue())
