"""A hub on bare picows: what Python itself costs, less all that ours does; argument: port.

No admission, no protocol, no retention; the same record, parsed, numbered, kept and passed on.
"""

import json
import sys
from collections import defaultdict

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server


class Stream:
    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.subscribers: set[WSTransport] = set()


streams: defaultdict[str, Stream] = defaultdict(Stream)


class Publisher(WSListener):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        record = json.loads(frame.get_payload_as_bytes())
        record["sequence"] = len(self.stream.log) + 1
        text = json.dumps(record).encode()
        self.stream.log.append(text)
        for subscriber in self.stream.subscribers:
            subscriber.send(WSMsgType.TEXT, text)


class Subscriber(WSListener):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.stream.subscribers.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.stream.subscribers.discard(transport)


def listener(request: WSUpgradeRequest) -> WSListener:
    _, role, name = request.path.decode().split("/")
    return (Publisher if role == "pub" else Subscriber)(streams[name])


async def main() -> None:
    server = await ws_create_server(listener, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
