"""Width, height, duration and the like, found by a separate, limited process.

Advisory: a probe that fails says so in `probeError` and never fails the upload.
"""

from typing import Any

from mentatlab.protocol.pins import PinType
from mentatlab.storage.workers import Limits, Media, MediaFailed, MediaWorkers


class Prober:
    def __init__(self, *, timeout_s: float = 10.0) -> None:
        self._limits = Limits(wall_s=timeout_s)
        self._workers = MediaWorkers()

    async def probe(self, media: Media, family: PinType) -> dict[str, Any]:
        """What is found in an audio, image or video file; `{"probeError": why}` otherwise."""
        try:
            found, _ = await self._workers.run({"probe": family}, media, self._limits)
        except MediaFailed as error:
            return {"probeError": str(error)}
        return found

    async def aclose(self) -> None:
        await self._workers.aclose()
