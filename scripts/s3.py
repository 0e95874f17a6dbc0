"""An S3 server for development: `make s3`. Its data stay in out/s3; Ctrl-C ends it."""

import os
import sys
from pathlib import Path

from tests.support.seaweed import SeaweedProcess

FOLDER = Path(__file__).parents[1] / "out" / "s3"


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    server = SeaweedProcess(FOLDER, port=int(os.environ.get("PORT") or 8333))
    print("Starting SeaweedFS …", file=sys.stderr)
    try:
        server.start()
        print("\n".join(f"export {name}={value}" for name, value in server.environment.items()))
        print("Paste these lines where you start `mentatlab up`. Ctrl-C ends it.", file=sys.stderr)
        sys.stdout.flush()
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
