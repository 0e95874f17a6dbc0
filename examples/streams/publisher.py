"""Publish measurements to a stream of one's own: `python publisher.py NAME [COUNT]`.

The name makes it resumable: the same name is the same stream and the same producer, and what the
log has already is not measured again.
"""

import asyncio
import math
import os
import sys

from mentatlab.protocol.errors import MentatError
from mentatlab.sdk.client import AsyncClient

SERVER = os.environ.get("MENTATLAB_SERVER", "http://127.0.0.1:7070")
KEY = os.environ.get("MENTATLAB_KEY")
EVERY_S = 0.5


async def publish(name: str, count: int) -> None:
    async with AsyncClient(SERVER, KEY) as client, client.connect_streams() as streams:
        opened = await client.open_stream("thermometer", name, idempotency_key=name)
        print(opened["stream_id"], flush=True)
        async with streams.publisher(opened["stream_id"], id=name) as out:
            for number in range(out.already, count):
                await out.send({"number": number, "celsius": celsius(number)})
                await asyncio.sleep(EVERY_S)
        # here the log has everything, and the stream is complete


def celsius(number: int) -> float:
    return round(20 + 5 * math.sin(number / 10), 2)


def main(name: str, count: str = "120") -> None:
    try:
        asyncio.run(publish(name, int(count)))
    except MentatError as error:
        sys.exit(f"{error.code}: {error.message} ({error.hint})")
    except KeyboardInterrupt:
        sys.exit("stopped; the same name goes on")


if __name__ == "__main__":
    main(*sys.argv[1:])
