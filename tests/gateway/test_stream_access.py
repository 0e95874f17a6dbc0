"""What a connection may do, and for how long: authorities, their credentials and tickets."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from tests.support.links import events, talk

from mentatlab.gateway import credentials
from mentatlab.gateway.admission import Admission, Rules
from mentatlab.gateway.head import Head
from mentatlab.gateway.identity import ANONYMOUS, LOOPBACK_USER, Caller
from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_msp import PROTOCOL
from mentatlab.gateway.stream_sse import follow
from mentatlab.protocol.errors import Code, Forbidden, MentatError, NotFound, Unauthenticated
from mentatlab.protocol.tokens import Capability, Claims, mint
from mentatlab.streams import StreamingConnectionManager

SECRET = b"s" * 32


class Keys:
    """Keys that can be revoked; counts how often it is asked."""

    def __init__(self) -> None:
        self.known = {"ml_reader": Caller(scopes=frozenset({"read"}), name="reader")}
        self.asked = 0

    async def __call__(self, key: str) -> Caller | None:
        self.asked += 1
        return self.known.get(key)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = StreamingConnectionManager()
    yield hub
    await hub.aclose()


@pytest.fixture
def admission(hub: StreamingConnectionManager, keys: Keys) -> Admission:
    rules = Rules(
        loopback=True, home_key="ml_home", token_secret=SECRET, rate=1, burst=2, record_rate=10
    )
    return Admission(rules, keys, hub)


def head(credential: str | None = None, path: str = "/api/v1/streams/st_1") -> Head:
    headers = [(b"host", b"localhost")]
    if credential is not None:
        headers.append((b"authorization", f"Bearer {credential}".encode()))
    return Head(False, "GET", path, b"", headers)


async def authority(admission: Admission, credential: str | None = None) -> Authority:
    return await admission.authorise(admission.admit(head(credential)))


def token(subject: str, *capabilities: Capability, expires: float | None = None) -> str:
    until = int(time.time() + 60 if expires is None else expires)
    claims = Claims(subject=subject, capabilities=capabilities, workspace="default", expires=until)
    return mint(claims, SECRET)


async def test_the_user_at_the_machine_may_all_for_ever(
    admission: Admission, hub: StreamingConnectionManager
):
    who = await authority(admission)
    stream_id = (await hub.create_stream("a", "b")).stream_id
    assert (who.known, who.expires, who.caller) == (True, None, LOOPBACK_USER)
    for capability in ("sub", "pub", "cancel"):
        found = await who.check(capability, stream_id)
        assert found == await hub.lane(stream_id)
    assert [who.spend() for _ in range(9)] == [0.0] * 9
    assert who.owe(10**9) == 0


async def test_a_stranger_learns_nothing(admission: Admission, hub: StreamingConnectionManager):
    stream_id = (await hub.create_stream("a", "b")).stream_id
    who = await (await authority(admission)).renewed("ml_reader")
    stranger = Authority(who._shared, ANONYMOUS)  # pyright: ignore[reportPrivateUsage]
    assert not stranger.known
    for id_ in (stream_id, "st_nobody"):
        with pytest.raises(Unauthenticated) as error:
            await stranger.check("sub", id_)
        assert error.value.code is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("capabilities", "asked", "allowed"),
    [
        (("sub",), "sub", True),
        (("sub",), "pub", False),
        (("sub",), "cancel", False),
        (("pub",), "sub", False),
        (("pub", "cancel"), "cancel", True),
        (("put",), "sub", False),
    ],
)
@pytest.mark.parametrize("of_run", [False, True])
async def test_a_token_is_for_what_it_names(
    admission: Admission,
    hub: StreamingConnectionManager,
    capabilities: tuple[Capability, ...],
    asked: Capability,
    allowed: bool,
    of_run: bool,
):
    lane = (await hub.create_stream("a", "b")).lane
    other = (await hub.create_stream("a", "b")).lane
    subject = lane.run_id if of_run else lane.stream_id
    who = await authority(admission, token(subject, *capabilities))
    if allowed:
        assert (await who.check(asked, lane.stream_id)).run_id == lane.run_id
    else:
        with pytest.raises(Forbidden):
            await who.check(asked, lane.stream_id)
    with pytest.raises(Forbidden):
        await who.check(asked, other.stream_id)
    with pytest.raises(NotFound):
        await who.check(asked, "st_nobody")


async def test_a_streams_token_does_not_follow_its_run(
    admission: Admission, hub: StreamingConnectionManager
):
    lane = (await hub.create_stream("a", "b")).lane
    who = await authority(admission, token(lane.stream_id, "sub"))
    with pytest.raises(Forbidden):
        await who.check("sub", lane.run_id)


async def test_what_belongs_to_a_run_is_published_to_by_nobody_else(
    admission: Admission, hub: StreamingConnectionManager
):
    lane = (await hub.create_stream("a", "b", run_id="rn_1")).lane
    for credential in (None, token(lane.stream_id, "sub", "pub"), token("rn_1", "sub", "pub")):
        who = await authority(admission, credential)
        await who.check("sub", lane.stream_id)
        with pytest.raises(Forbidden, match="only its run"):
            await who.check("pub", lane.stream_id)


async def test_a_token_that_ends_ends_the_authority(
    admission: Admission, hub: StreamingConnectionManager, monkeypatch: pytest.MonkeyPatch
):
    lane = (await hub.create_stream("a", "b")).lane
    who = await authority(admission, token(lane.stream_id, "sub", expires=time.time() + 30))
    await who.guard()
    ends = who.expires
    assert ends is not None
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    for late in (who.guard(), who.check("sub", lane.stream_id)):
        with pytest.raises(Unauthenticated) as error:
            await late
        assert error.value.code is Code.TOKEN_INVALID
    renewed = await who.renewed(token(lane.stream_id, "sub"))
    await renewed.guard()
    assert renewed.expires is not None
    assert renewed.expires > ends


@pytest.mark.parametrize("credential", ["v1.a.b", "ml_nobody", ""])
async def test_renewed_by_nonsense(admission: Admission, credential: str):
    with pytest.raises(Unauthenticated):
        await (await authority(admission)).renewed(credential)


async def test_a_revoked_key_ends_the_authority_within_a_second(
    admission: Admission, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    who = await authority(admission, "ml_reader")
    await who.guard()
    await who.guard()
    assert keys.asked == 1
    keys.known.clear()
    await who.guard()
    later = time.monotonic() + 1.01
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as error:
            await who.guard()
        assert error.value.code is Code.UNAUTHENTICATED


async def test_a_new_request_with_a_revoked_key_is_refused_at_once(
    admission: Admission, keys: Keys
):
    await authority(admission, "ml_reader")
    keys.known.clear()
    with pytest.raises(Unauthenticated):
        await authority(admission, "ml_reader")


async def test_requests_control_messages_and_records_have_a_rate_each(admission: Admission):
    who = await authority(admission, "ml_home")
    await authority(admission, "ml_home")
    with pytest.raises(MentatError) as error:
        await authority(admission, "ml_home")
    assert error.value.code is Code.RATE_LIMITED
    assert (who.spend(), who.spend()) == (0, 0)
    assert 0 < who.spend() <= 1
    assert who.owe(20) == 0
    assert 0.9 < who.owe(10) <= 1
    other = await authority(admission, "ml_reader")
    assert (other.spend(), other.owe(20)) == (0, 0)


async def test_what_is_handed_on_ends_no_later(admission: Admission):
    ends = int(time.time()) + 30
    who = await authority(admission, token("st_1", "sub", expires=ends))
    assert who.granted("st_1", ("sub",), ends + 999).expires == ends
    assert who.granted("st_1", ("sub",), ends - 9).expires == ends - 9
    user = await authority(admission)
    assert user.granted("st_1", ("sub",), ends + 999).expires == ends + 999


@pytest.mark.parametrize(
    ("origin", "readable"),
    [
        (None, False),
        ("http://localhost:3000", True),
        ("https://[::1]", True),
        ("https://localhost.evil.example", False),
        ("https://app.example", True),
        ("null", False),
    ],
)
def test_pages_that_may_read_answers(
    hub: StreamingConnectionManager, keys: Keys, origin: str | None, readable: bool
):
    origins = frozenset({"https://app.example"})
    rules = Rules(loopback=True, home_key="k", token_secret=SECRET, origins=origins)
    headers = [] if origin is None else [(b"origin", origin.encode())]
    said = Admission(rules, keys, hub).cors(Head(False, "GET", "/", b"", headers))
    assert dict(said).get("access-control-allow-origin") == (origin if readable else None)


@pytest.mark.parametrize(
    ("websocket", "path", "edge", "followed"),
    [
        (False, "/api/v1/streams/st_1", "http", None),
        (False, "/api/v1/streams/st_1/log", "http", "st_1"),
        (False, "/api/v1/streams/st_1/sse", "sse", "st_1"),
        (False, "/api/v1/streams/a/b/sse", "http", None),
        (False, "/api/v1/runs/rn_1/events", "http", None),
        (True, "/ws/streams/st_1", "ws", "st_1"),
        (True, "/ws/streams/", "ws", None),
        (True, "/elsewhere", "ws", None),
    ],
)
def test_heads(websocket: bool, path: str, edge: str, followed: str | None):
    found = Head(websocket, "GET", path, b"a=1&a=2&b=", [])
    assert (found.edge, found.followed) == (edge, followed)
    assert found.asked == {"a": "2", "b": ""}


def test_lists_go_over_several_lines():
    name = b"sec-websocket-protocol"
    found = Head(True, "GET", "/", b"", [(name, b"a, b"), (b"x", b"y"), (name, b",c")])
    assert found.listed(name) == ["a", "b", "c"]
    assert found.header(name) == "a, b"
    assert found.header(b"y") is None


@pytest.mark.parametrize("protocols", [(), (PROTOCOL,)])
async def test_a_revoked_key_ends_who_only_waits(
    admission: Admission,
    hub: StreamingConnectionManager,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    protocols: tuple[str, ...],
):
    monkeypatch.setattr(credentials, "RECHECK_S", 0.0)
    stream_id = (await hub.create_stream("a", "b")).stream_id
    who = await authority(admission, "ml_reader")
    now = asyncio.get_running_loop().time()
    async with talk(hub, stream_id, *protocols, who=who) as reader:
        reader.tick(now + 16)  # it holds
        await reader.next()
        keys.known.clear()
        reader.tick(now + 32)
        assert await reader.closed() == 4101


async def test_a_revoked_key_ends_event_streams_that_only_wait(
    admission: Admission,
    hub: StreamingConnectionManager,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(credentials, "RECHECK_S", 0.0)
    stream_id = (await hub.create_stream("a", "b")).stream_id
    who = await authority(admission, "ml_reader")
    asked = {"from_": None, "rate": None, "last_event_id": None}
    feed = await follow(Connections(hub), stream_id, who, **asked)
    assert feed is not None
    now = asyncio.get_running_loop().time()
    async with events(feed) as link:
        feed.tick(now + 16, 0.0)
        keys.known.clear()
        feed.tick(now + 32, 0.0)
        async with asyncio.timeout(10):
            assert await link.closed == 1000
