"""A hub on aiohttp, as its documentation has it; argument: port."""

import asyncio
import json
import sys
from collections import defaultdict

from aiohttp import web


class Stream:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.sockets: set[web.WebSocketResponse] = set()
        self.responses: set[web.StreamResponse] = set()


streams: defaultdict[str, Stream] = defaultdict(Stream)


async def publish(request: web.Request) -> web.WebSocketResponse:
    stream = streams[request.match_info["name"]]
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        record = message.json()
        record["sequence"] = len(stream.log) + 1
        text = json.dumps(record)
        stream.log.append(text)
        for subscriber in stream.sockets:
            await subscriber.send_str(text)
        if stream.responses:
            event = f"data: {text}\n\n".encode()
            for response in stream.responses:
                await response.write(event)
    return socket


async def subscribe(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    sockets = streams[request.match_info["name"]].sockets
    sockets.add(socket)
    async for _ in socket:
        pass
    sockets.discard(socket)
    return socket


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"retry: 1500\n\n")
    streams[request.match_info["name"]].responses.add(response)
    await asyncio.Event().wait()  # until this process is ended
    return response


app = web.Application()
app.add_routes(
    [
        web.get("/pub/{name}", publish),
        web.get("/sub/{name}", subscribe),
        web.get("/sse/{name}", events),
    ]
)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
