"""A million records through a server that is killed every few seconds, told by an outside prober.

    python -m benchmarks.streams_chaos [RECORDS [KILL_EVERY_S]]

Commit lanes, publishers and readers of the SDK through a proxy that cuts their connections. Exits
with 1 when a single acknowledged record was lost, doubled or out of order.
"""

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from tests.support.chaos import Report, chaos

from benchmarks.table import Row, show


async def main(records: int = 1_000_000, kill_every_s: float = 3.0) -> int:
    with tempfile.TemporaryDirectory() as home:
        report = await chaos(Path(home), records=records, kill_every_s=kill_every_s, at_least_s=60)
    show(f"kill -9 every {kill_every_s:g} s under publishers and readers", _rows(report))
    return int(any((report.lost, report.doubled, report.reordered)))


def _rows(report: Report) -> list[Row]:
    restarts = report.restarts or [0.0]
    return [
        Row("records published and acknowledged", report.records, ""),
        Row("records read, by two readers each", report.read, ""),
        Row("lost", report.lost, "records", "0"),
        Row("doubled", report.doubled, "records", "0"),
        Row("out of order", report.reordered, "records", "0"),
        Row("kills", len(report.restarts), ""),
        Row("cut connections", report.cuts, ""),
        Row("seconds in all", report.seconds, "s"),
        Row("restart, kill to ready", statistics.median(restarts), "s p50"),
        Row("restart, kill to ready", max(restarts), "s max"),
        Row("available: opened and delivered in 1 s", report.availability, "% of probes"),
    ]


if __name__ == "__main__":
    number, every = (sys.argv[1:] + ["1000000", "3"][len(sys.argv) - 1 :])[:2]
    sys.exit(asyncio.run(main(int(number), float(every))))
