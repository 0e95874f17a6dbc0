"""`make bench`: every figure beside the machine's commit latency. Nothing is asserted.

python -m benchmarks [part ...]      parts: commits whole engine streams storage media
"""

import asyncio
import os
import platform
import sys

from benchmarks import commits, engine, media, storage, streams, whole
from benchmarks.table import show

PARTS = {
    "commits": ("What a durable commit costs here", commits.run),
    "whole": ("The whole product, from outside", whole.run),
    "engine": ("Engine and agent processes", engine.run),
    "streams": ("Streams through real sockets", streams.run),
    "storage": ("Storage over HTTP", storage.run),
    "media": ("Video and speech, beside bare decoding", media.run),
}


async def main(names: list[str]) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in names or PARTS:
        title, run = PARTS[name]
        show(title, await run())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
