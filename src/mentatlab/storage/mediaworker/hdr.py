"""Pictures of high dynamic range on a common screen.

Sources: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG), ITU-R BT.2408 (reference white 203 cd/m²), BT.2087
(BT.2020 to BT.709); tone curve: Reinhard et al. 2002, eq. 4.
"""

import functools
import math
from collections.abc import Callable

from PIL import Image, ImageFilter

_POINTS = 25  # of the table, on each side
_WHITE = 203.0  # cd/m²
_PEAK = 1000.0 / _WHITE  # what is brighter is white
_TO_709 = (
    (1.6605, -0.5876, -0.0728),
    (-0.1246, 1.1329, -0.0083),
    (-0.0182, -0.1006, 1.1187),
)

RGB = tuple[float, float, float]


def to_sdr(picture: Image.Image, transfer: int) -> Image.Image:
    """RGB of 8 bits, coded by this transfer characteristic, as sRGB."""
    light = _LIGHTS.get(transfer)
    return picture if light is None else picture.filter(_table(light))


@functools.cache
def _table(light: Callable[[RGB], RGB]) -> ImageFilter.Color3DLUT:
    def convert(red: float, green: float, blue: float) -> RGB:
        return _toned(light((red, green, blue)))

    return ImageFilter.Color3DLUT.generate(_POINTS, convert)


def _toned(linear: RGB) -> RGB:
    """Light of BT.2020, 1 = reference white, as sRGB code values 0 to 1."""
    brightest = max(linear)
    factor = (1 + brightest / _PEAK**2) / (1 + brightest)
    red, green, blue = linear
    mixed = (r * red + g * green + b * blue for r, g, b in _TO_709)
    red, green, blue = (_srgb(factor * value) for value in mixed)
    return red, green, blue


def _srgb(light: float) -> float:
    """IEC 61966-2-1."""
    light = min(1.0, max(0.0, light))
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _pq(code: RGB) -> RGB:
    red, green, blue = map(_pq_light, code)
    return red, green, blue


def _pq_light(code: float) -> float:
    power = code ** (1 / 78.84375)
    return (
        10_000
        / _WHITE
        * (max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    )


def _hlg(code: RGB) -> RGB:
    """On a screen of 1000 cd/m², whose system gamma is 1.2."""
    red, green, blue = map(_hlg_scene, code)
    luminance = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    factor = 1000 / _WHITE * luminance**0.2
    return factor * red, factor * green, factor * blue


def _hlg_scene(code: float) -> float:
    if code <= 0.5:
        return code**2 / 3
    return (math.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12


_LIGHTS = {16: _pq, 18: _hlg}
"""By ITU-T H.273's TransferCharacteristics."""
