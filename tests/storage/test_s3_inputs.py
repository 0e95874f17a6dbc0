"""Which objects of other buckets a workspace may read: what lies below its prefixes, no other."""

import sys
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Forbidden, Invalid
from mentatlab.storage.s3_inputs import S3Inputs, open_s3_inputs, parse_prefixes, read_places

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


LOGIN = {"S3_ENDPOINT": "http://127.0.0.1:1", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "s"}


async def test_opened_by_the_settings() -> None:
    assert read_places(LOGIN) is None
    async with open_s3_inputs(None) as none:
        assert none is None
    places = read_places({**LOGIN, "MENTATLAB_S3_PREFIXES": SETTING})
    assert places is not None
    async with open_s3_inputs(places) as inputs:
        assert inputs is not None
        with pytest.raises(Forbidden):
            inputs.open("s3://shared/x", workspace="default")


def test_prefixes_need_a_login() -> None:
    with pytest.raises(Invalid) as caught:
        read_places({"MENTATLAB_S3_PREFIXES": SETTING})
    assert caught.value.code is Code.BAD_SETTING


async def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mentatlab.storage.s3_source", None)
    places = read_places({**LOGIN, "MENTATLAB_S3_PREFIXES": SETTING})
    with pytest.raises(Invalid) as caught:
        async with open_s3_inputs(places):
            pass
    assert caught.value.code is Code.MISSING_EXTRA


def test_no_setting_is_no_prefix() -> None:
    assert parse_prefixes("") == []
    with pytest.raises(Forbidden):
        S3Inputs([], read).open("s3://bucket/x", workspace="default")
