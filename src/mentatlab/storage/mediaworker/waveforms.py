"""A picture of how loud a sound is over its time."""

from functools import reduce
from typing import BinaryIO, NamedTuple

from av import AudioResampler
from av.error import InvalidDataError
from PIL import Image, ImageDraw

from .images import Drawn, Format, encode
from .timed import check_codec, first_sound, open_timed

_COLOUR = (79, 109, 158)
_FLAT = 4  # times as wide as high
_AUDIBLE = 1e-4  # of full scale: -80 dB
_SAMPLE = 4  # bytes


class Bounds(NamedTuple):
    low: float
    high: float


def draw(file: BinaryIO, pixels: int, format_: Format) -> Drawn:
    """`pixels` wide, a quarter as high, on a transparent ground; all channels mixed."""
    envelope = Envelope(pixels)
    with open_timed(file) as container:
        sound = first_sound(container)
        if sound is None:
            raise ValueError("there is no sound in it")
        check_codec(sound)
        mixer = AudioResampler(format="flt", layout="mono", rate=sound.sample_rate)
        for packet in container.demux(sound):
            try:
                frames = packet.decode()
            except InvalidDataError:  # the next may be whole
                continue
            for frame in frames:
                for part in mixer.resample(frame):
                    envelope.add(bytes(part.planes[0])[: _SAMPLE * part.samples])
    return encode(_drawn(envelope.bounds(), pixels), format_)


class Envelope:
    """Lowest and highest sample of equal spans of a sound whose length is not known: once there are
    so many samples, `spans` to twice that. When they are more, each two become one."""

    def __init__(self, spans: int) -> None:
        self._most = 2 * spans
        self._bounds: list[Bounds] = []
        self._each = 16 * _SAMPLE  # bytes in a span
        self._rest = bytearray()

    def add(self, samples: bytes) -> None:
        """32-bit floats of this machine, -1 to 1."""
        self._rest += samples
        while len(self._rest) >= self._each:
            self._bounds.append(_bounds(self._rest[: self._each]))
            del self._rest[: self._each]
            if len(self._bounds) == self._most:
                self._bounds = list(map(_joined, self._bounds[::2], self._bounds[1::2]))
                self._each *= 2

    def bounds(self) -> list[Bounds]:
        return [*self._bounds, _bounds(self._rest)] if self._rest else self._bounds


def _joined(one: Bounds, other: Bounds) -> Bounds:
    return Bounds(min(one.low, other.low), max(one.high, other.high))


def _bounds(samples: bytearray) -> Bounds:
    """By Pillow: sixty times as fast as `min` and `max`. What is no number counts as full scale."""
    row = Image.frombytes("F", (len(samples) // _SAMPLE, 1), bytes(samples))
    low, high = (
        max(-1.0, min(1.0, value)) for value in row.getextrema() if isinstance(value, float)
    )
    return Bounds(low, high)


def _drawn(bounds: list[Bounds], width: int) -> Image.Image:
    """The loudest sample touches the edge."""
    if not bounds:
        raise ValueError("there is no sound in it")
    height = max(1, width // _FLAT)
    picture = Image.new("RGBA", (width, height))
    canvas, middle = ImageDraw.Draw(picture), (height - 1) / 2
    loudest = max(max(-low, high) for low, high in bounds)
    scale = middle / loudest if loudest >= _AUDIBLE else 0
    for x in range(width):
        start = x * len(bounds) // width
        span = reduce(_joined, bounds[start : max(start + 1, (x + 1) * len(bounds) // width)])
        canvas.line((x, middle - scale * span.high, x, middle - scale * span.low), fill=_COLOUR)
    return picture
