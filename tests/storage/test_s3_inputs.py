"""Which objects of other buckets a workspace may read: what lies below its prefixes, no other."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Forbidden, Invalid
from mentatlab.storage.s3_inputs import S3Inputs, parse_prefixes

SETTING = "default=s3://shared/incoming/, team-a=s3://team-a/,team-a=s3://shared/a/"
asked: list[tuple[str, str]] = []


async def read(bucket: str, key: str) -> AsyncIterator[bytes]:
    asked.append((bucket, key))
    yield b"bytes"


@pytest.fixture
def inputs() -> S3Inputs:
    asked.clear()
    return S3Inputs(parse_prefixes(SETTING), read)


@pytest.mark.parametrize(
    ("workspace", "address", "place"),
    [
        ("default", "s3://shared/incoming/x.jpg", ("shared", "incoming/x.jpg")),
        ("default", "s3://shared/incoming/a/b/c", ("shared", "incoming/a/b/c")),
        ("default", "s3://shared/incoming/%2e%2e/x", ("shared", "incoming/%2e%2e/x")),  # as it is
        ("default", "s3://shared/incoming/...", ("shared", "incoming/...")),
        ("team-a", "s3://team-a/x y+ä.jpg", ("team-a", "x y+ä.jpg")),
        ("team-a", "s3://shared/a/x", ("shared", "a/x")),
    ],
)
async def test_what_may_be_read(
    inputs: S3Inputs, workspace: str, address: str, place: tuple[str, str]
) -> None:
    assert [chunk async for chunk in inputs.open(address, workspace=workspace)] == [b"bytes"]
    assert asked == [place]


@pytest.mark.parametrize(
    ("workspace", "address"),
    [
        ("default", "s3://shared/x"),
        ("default", "s3://shared/incoming"),
        ("default", "s3://shared/incoming/"),
        ("default", "s3://shared/incoming-too/x"),
        ("default", "s3://shared/Incoming/x"),
        ("default", "s3://other/incoming/x"),
        ("default", "s3://team-a/x"),
        ("team-a", "s3://shared/incoming/x"),
        ("", "s3://shared/incoming/x"),
        ("unknown", "s3://shared/incoming/x"),
        ("default", "s3://shared/incoming/../secret"),
        ("default", "s3://shared/incoming/./x"),
        ("default", "s3://shared/incoming//x"),
        ("default", "s3://shared/incoming/a/.."),
        ("default", "s3://shared/incoming/..\\secret"),
        ("default", "s3://shared/incoming/x\n"),
        ("default", "s3://shared/incoming/x\x00.jpg"),
        ("default", "s3://SHARED/incoming/x"),
        ("default", "s3:///incoming/x"),
        ("default", "s3://shared@evil/incoming/x"),
        ("default", "s3://shared:80/incoming/x"),
        ("default", "s3://shared"),
        ("default", "S3://shared/incoming/x"),
        ("default", "http://shared/incoming/x"),
        ("default", ""),
    ],
)
def test_what_may_not(inputs: S3Inputs, workspace: str, address: str) -> None:
    with pytest.raises(Forbidden) as caught:
        inputs.open(address, workspace=workspace)
    assert caught.value.code is Code.S3_PREFIX_FORBIDDEN
    assert asked == []


@given(st.text(max_size=80))
def test_whatever_is_written_only_what_is_below_is_read(rest: str) -> None:
    inputs = S3Inputs(parse_prefixes(SETTING), read)
    asked.clear()
    try:
        inputs.open(f"s3://shared/{rest}", workspace="default")
    except Forbidden:
        return
    assert rest.startswith("incoming/")
    assert ".." not in rest.split("/")


@pytest.mark.parametrize(
    "text",
    [
        "default",
        "default=",
        "=s3://bucket/",
        "default=s3://bucket",
        "default=s3://bucket/prefix",
        "default=s3://bucket/a//b/",
        "default=s3://bucket/../",
        "default=s3://b/",
        "default=/bucket/",
        "a b=s3://bucket/",
    ],
)
def test_a_setting_that_is_wrong(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_prefixes(text)
    assert caught.value.code is Code.BAD_SETTING


def test_no_setting_is_no_prefix() -> None:
    assert parse_prefixes("") == []
    with pytest.raises(Forbidden):
        S3Inputs([], read).open("s3://bucket/x", workspace="default")
