"""A hub on FastAPI's own WebSocket, with its documentation's connection manager; argument: port."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse


class Stream:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.sockets: set[WebSocket] = set()
        self.queues: set[asyncio.Queue[str]] = set()


app = FastAPI()
streams: defaultdict[str, Stream] = defaultdict(Stream)


@app.websocket("/pub/{name}")
async def publish(socket: WebSocket, name: str) -> None:
    stream = streams[name]
    await socket.accept()
    try:
        while True:
            record = await socket.receive_json()
            record["sequence"] = len(stream.log) + 1
            text = json.dumps(record)
            stream.log.append(text)
            for subscriber in stream.sockets:
                await subscriber.send_text(text)
            for queue in stream.queues:
                queue.put_nowait(text)
    except WebSocketDisconnect:
        pass


@app.websocket("/sub/{name}")
async def subscribe(socket: WebSocket, name: str) -> None:
    await socket.accept()
    streams[name].sockets.add(socket)
    try:
        await socket.receive_text()
    except WebSocketDisconnect:
        streams[name].sockets.discard(socket)


@app.get("/sse/{name}")
async def events(name: str) -> StreamingResponse:
    queue: asyncio.Queue[str] = asyncio.Queue()
    streams[name].queues.add(queue)
    return StreamingResponse(_events(queue), media_type="text/event-stream")


async def _events(queue: asyncio.Queue[str]) -> AsyncIterator[str]:
    yield "retry: 1500\n\n"
    while True:
        yield f"data: {await queue.get()}\n\n"


uvicorn.run(app, port=int(sys.argv[1]), log_level="error", ws_per_message_deflate=False)
