"""`kill -9` every two seconds, cut lines in between: no acknowledged record is lost, doubled or out
of order."""

from pathlib import Path

import pytest
from tests.support.chaos import Report, chaos


def assert_whole(report: Report, records: int) -> None:
    print(report)
    assert report.records == records, report
    assert report.read == 2 * records, report
    assert (report.lost, report.doubled, report.reordered) == (0, 0, 0), report
    assert report.restarts, "the server was never killed"
    assert report.cuts, "no line was cut"
    assert 0 < report.answered <= report.probes


async def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    report = await chaos(
        tmp_path, records=4_000, streams=2, kill_every_s=1, cut_every_s=0.3, at_least_s=4
    )
    assert_whole(report, 4_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_is_lost_of_a_hundred_thousand(tmp_path: Path) -> None:
    assert_whole(await chaos(tmp_path, records=100_000), 100_000)
