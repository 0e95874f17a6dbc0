"""What happens in a video: scenes and objects, told while it is decoded; then a summary."""

import asyncio
from contextlib import aclosing
from typing import Any

from analysis import Analysis, Params
from contact_sheet import contact_sheet

from mentatlab.sdk import StreamingAgent
from mentatlab.sdk.media.background import in_thread
from mentatlab.sdk.media.detection import Detector
from mentatlab.sdk.media.images import encode_jpeg
from mentatlab.sdk.media.video import open_video
from mentatlab.sdk.models import find_model
from mentatlab.sdk.params import read_params


class VideoAnalyzer(StreamingAgent):
    def __init__(self) -> None:
        self._detectors: dict[str, Detector] = {}

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        detector = await asyncio.to_thread(self._load, params.model)
        stream = await self.init_stream("analysis_stream")
        with self.open_media(inputs["video"]) as file, open_video(file) as video:
            analysis = Analysis(video, detector, params, progress=self.progress)
            async with aclosing(in_thread(analysis.events())) as events:
                async for event in events:
                    await self.send_chunk(stream, event, pts=event["time"])
            summary = analysis.summary()
        sheet = encode_jpeg(contact_sheet(analysis.tiles))
        image = await self.upload_media("contact_sheet", sheet, {"mimeType": "image/jpeg"})
        return {"summary": summary, "contact_sheet": image}

    def _load(self, name: str) -> Detector:
        if name not in self._detectors:
            self._detectors = {name: Detector(find_model(name))}  # one at a time in memory
        return self._detectors[name]


if __name__ == "__main__":
    VideoAnalyzer.main()
