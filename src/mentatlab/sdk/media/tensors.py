"""From images to what a model takes: its size, value range and axis order, as its card says."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mentatlab.sdk.media.images import REDUCING_GAP
from mentatlab.sdk.models import Floats, InputSpec

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def crop_and_resize(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The central square (or the whole image, when the card crops nothing) at the model's size."""
    height, width = spec.size
    return image.resize(
        (width, height),
        _FILTERS[spec.resize],
        box=central_square(image.size, spec.centre_crop),
        reducing_gap=REDUCING_GAP,
    )


def central_square(size: tuple[int, int], share: float | None) -> tuple[float, float, float, float]:
    """The square in the middle whose side is `share` of the shorter side; None = everything."""
    width, height = size
    if share is None:
        return (0, 0, width, height)
    side = share * min(size)
    left, upper = (width - side) / 2, (height - side) / 2
    return (left, upper, left + side, upper + side)


def to_tensor(images: Sequence[Image.Image], spec: InputSpec) -> Floats:
    """n RGB images of the model's size → n×3×H×W or n×H×W×3, in the range it was trained on."""
    low, high = spec.scale
    std = np.array(spec.std, np.float32)
    factor = np.float32((high - low) / 255) / std
    shift = (np.float32(low) - np.array(spec.mean, np.float32)) / std
    # Plane by plane: numpy is five times slower along an axis of three.
    planes = np.array([[np.asarray(band) for band in image.split()] for image in images])
    values = planes * factor[:, None, None]
    values += shift[:, None, None]
    return values if spec.layout == "NCHW" else np.ascontiguousarray(values.transpose(0, 2, 3, 1))
