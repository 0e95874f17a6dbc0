"""Images from strangers: opened within bounds, upright, plain RGB.

Reads JPEG PNG WebP TIFF BMP GIF (the first frame). Sizes are `(width, height)` in pixels.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.sdk.errors import AgentError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 50_000_000
REDUCING_GAP = 2.0
"""Shrink by whole factors first, down to twice the target: as good, several times faster."""

# The bound is Pillow's own, process-wide: it also holds inside decoders, where a file may announce
# a second size. Between one and two times the bound Pillow only warns, hence the filter.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB image. `size` is that of the file; `image` may have been decoded smaller."""

    image: Image.Image
    size: tuple[int, int]


Source = Path | bytes | BinaryIO


def load_image(source: Source, *, at_least: int | None = None) -> Picture:
    """Decode a file: its path, its bytes, or itself open and seekable.

    `at_least`: both sides may shrink to this many pixels, which is up to 8 times faster for JPEG;
    other formats come in full size.
    `Invalid(IMAGE_UNREADABLE)`: no image, another format, or cut off.
    `TooLarge(IMAGE_TOO_LARGE)`: over 50 Mpx; refused before its pixels are decoded.
    """
    name = source.name if isinstance(source, Path) else "the image"
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as file:
            return _decode(file, at_least)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except (FileNotFoundError, AgentError):  # the file is missing, or cannot be fetched
        raise
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise _unreadable(name, error) from error


def encode_jpeg(image: Image.Image, *, quality: int = 85) -> bytes:
    """Baseline JPEG, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel; 16-bit grey keeps its high byte, transparency is laid on white."""
    if image.mode in _DEEP:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _stretched(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _decode(file: Image.Image, at_least: int | None) -> Picture:
    width, height = file.size
    if at_least is not None:
        file.draft("RGB", (at_least, at_least))
    file.load()
    turned = file.getexif().get(ExifTags.Base.Orientation) in _TURNED
    upright = ImageOps.exif_transpose(file)
    return Picture(to_rgb(upright), (height, width) if turned else (width, height))


def _stretched(image: Image.Image) -> Image.Image:
    """32-bit values have no agreed range: the darkest becomes 0, the brightest 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def _unreadable(name: str, error: Exception) -> MentatError:
    return Invalid(
        Code.IMAGE_UNREADABLE,
        f"{name} cannot be read as an image: {error}",
        hint=f"send a complete {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file",
    )


def _too_large(name: str) -> MentatError:
    return TooLarge(
        Code.IMAGE_TOO_LARGE,
        f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels",
        hint="make it smaller before you upload it",
    )
