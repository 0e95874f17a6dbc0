"""Pictures of high dynamic range on a common screen.

Sources: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG), ITU-R BT.2408 (reference white 203 cd/m²), BT.2087
(BT.2020 to BT.709), IEC 61966-2-1 (sRGB); tone curve: Reinhard et al. 2002, eq. 4, for each channel
by itself, which lets bright colours go to white.
"""

import functools
import math

from PIL import Image, ImageFilter

_WHITE = 203.0  # cd/m²
_PEAK = 1000.0 / _WHITE  # what is brighter is white
_POINTS = 17  # of the colour table, on each side
_TO_709 = (
    (1.6605, -0.5876, -0.0728),
    (-0.1246, 1.1329, -0.0083),
    (-0.0182, -0.1006, 1.1187),
)


def to_sdr(picture: Image.Image, transfer: int) -> Image.Image:
    """RGB of 8 bits as sRGB. `transfer`: ITU-T H.273's TransferCharacteristics; of others than PQ
    and HLG the picture is given back."""
    light = {16: _pq, 18: _hlg}.get(transfer)
    if light is None:
        return picture
    curve = [round(255 * _srgb(_toned(light(code / 255)))) for code in range(256)]
    return picture.point(curve * 3).filter(_to_709())


@functools.cache
def _to_709() -> ImageFilter.Color3DLUT:
    def convert(*codes: float) -> tuple[float, float, float]:
        red, green, blue = map(_linear, codes)
        red, green, blue = (_srgb(r * red + g * green + b * blue) for r, g, b in _TO_709)
        return red, green, blue

    return ImageFilter.Color3DLUT.generate(_POINTS, convert)


def _toned(light: float) -> float:
    """1 = reference white before, the brightest afterwards."""
    return light * (1 + light / _PEAK**2) / (1 + light)


def _srgb(light: float) -> float:
    light = min(1.0, max(0.0, light))
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _linear(code: float) -> float:
    return code / 12.92 if code <= 0.04045 else ((code + 0.055) / 1.055) ** 2.4


def _pq(code: float) -> float:
    power = code ** (1 / 78.84375)
    ratio = max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return 10_000 / _WHITE * ratio ** (1 / 0.1593017578125)


def _hlg(code: float) -> float:
    """On a screen of 1000 cd/m², whose system gamma is 1.2."""
    if code <= 0.5:
        scene = code**2 / 3
    else:
        scene = (math.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return 1000 / _WHITE * scene**1.2
