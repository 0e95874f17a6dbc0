"""Follow a stream: `python subscriber.py STREAM_ID [CURSOR_FILE]`.

With a file it remembers how far it is: started again, it goes on behind the last record that it
has dealt with.
"""

import asyncio
import os
import sys
from pathlib import Path

from mentatlab.protocol.errors import MentatError
from mentatlab.sdk.client import AsyncClient, Gap, Reset

SERVER = os.environ.get("MENTATLAB_SERVER", "http://127.0.0.1:7070")
KEY = os.environ.get("MENTATLAB_KEY")


async def follow(stream_id: str, place: Path) -> None:
    begin = (place.read_text() if place.exists() else "") or "start"
    async with (
        AsyncClient(SERVER, KEY) as client,
        client.connect_streams() as streams,
        streams.subscribe(stream_id, begin) as records,
    ):
        async for record in records:
            match record:
                case Reset(keep):
                    print(f"begun again: forget what came after record {keep}")
                case Gap(reason, _):
                    print(f"something is missing here ({reason})")
                case _:
                    print(record.sequence, record.payload, flush=True)
            place.write_text(records.cursor or begin)
    print("complete")


def main(stream_id: str, cursor_file: str = os.devnull) -> None:
    try:
        asyncio.run(follow(stream_id, Path(cursor_file)))
    except MentatError as error:  # TruncatedStream and StreamFailed are some of them
        sys.exit(f"{error.code}: {error.message} ({error.hint})")
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
