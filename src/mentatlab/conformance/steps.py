"""The verbs of the cases' language, as `conformance/README.md` tells it.

A step `{verb: argument, option: …}` is a call `verb(world, argument, option=…)`.
"""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from mentatlab.conformance.cases import Step, verb_of
from mentatlab.conformance.clients import EventSource, Message, WebSocket
from mentatlab.conformance.frames import BINARY, CLOSE, TEXT, media_frame, websocket_frame
from mentatlab.conformance.match import match, shown
from mentatlab.conformance.world import FailedError, World, answer_of, asked_to_wait

PROTOCOL = "msp.v1+json"
AT_ANY_TIME = frozenset({"mark", "credit", "throttle", "published"})
"""What a server may say between two other messages: passed over when it is not what is expected."""
MAIN = "main"


async def play(world: World, steps: Sequence[Step]) -> None:
    for number, step in enumerate(steps, 1):
        verb = verb_of(step, VERBS)
        assert verb is not None
        options = {_parameter(name): value for name, value in step.items() if name != verb}
        try:
            await VERBS[verb](world, step[verb], **options)
        except FailedError as failed:
            raise FailedError(f"step {number} ({verb}): {failed}") from failed


def _parameter(option: str) -> str:
    return f"{option}_" if option in ("as", "from") else option


# Over HTTP


async def init(
    world: World, body: Mapping[str, Any], *, as_: str = "id", auth: str | None = None
) -> None:
    """Opens a stream; `$id` is its id, `$id.run_id`, `$id.pub_token`, … the rest of the answer."""
    told = {"agent_id": "conformance", "pin_name": "out", **world.fill(body)}
    async with _patience(world, lambda: "no answer"):
        response = await world.request(
            "POST", "/api/v1/streams/init", json=told, headers=world.headers({}, auth)
        )
    if response.status_code != 200:
        raise FailedError(f"{response.status_code}: {shown(response.text)}")
    answer = response.json()
    world.bound[as_] = answer["stream_id"]
    world.bound.update({f"{as_}.{name}": value for name, value in answer.items()})


async def publish(
    world: World, values: Any, *, to: str = "$id", producer: Any = None, expect: Any = None
) -> None:
    """Data records with these values, in one POST."""
    records = [{"payload": {"data": value}} for value in world.fill(values)]
    body = {"records": records, **({} if producer is None else {"producer": world.fill(producer)})}
    await http(
        world, f"POST /api/v1/streams/{to}/records", json=body, expect={"json": expect or {}}
    )


async def end(world: World, to: str) -> None:
    """`stream_end{complete}`."""
    await http(world, f"POST /api/v1/streams/{to}/records", json={"type": "stream_end"})


async def http(
    world: World,
    call: str,
    *,
    headers: Mapping[str, Any] = {},
    json: Any = None,
    text: Any = None,
    hex: str | None = None,
    auth: str | None = None,
    expect: Mapping[str, Any] = {},
    every_s: float | None = None,
) -> None:
    """`METHOD path`; `expect` of `status` (200), `headers`, `json`, `lines`, `hex`, `size`.

    `every_s`: asked again, so many seconds later, until it is so.
    """
    method, _, path = world.fill(call).partition(" ")
    content = bytes.fromhex(hex) if hex is not None else None
    options: dict[str, Any] = {"headers": world.headers(headers, auth)}
    if json is not None:
        options["json"] = world.fill(json)
    elif text is not None or content is not None:
        options["content"] = content if text is None else str(world.fill(text)).encode()
    pattern, fault = {"status": 200, **expect}, ""
    async with _patience(world, lambda: f"not within the time: {fault or 'no answer'}"):
        while True:
            response = await world.request(method, path, **options)
            fault = match(pattern, answer_of(response), world.bound)
            if not fault:
                return
            if every_s is None:
                raise FailedError(f"{fault} in {response.status_code} {shown(response.text)}")
            await asyncio.sleep(every_s)


# Connections


async def connect(
    world: World,
    path: str,
    *,
    as_: str = MAIN,
    protocol: str | None = None,
    headers: Mapping[str, Any] = {},
    auth: str | None = None,
    expect: Mapping[str, Any] = {},
    window: int | None = None,
    pong: bool = True,
) -> None:
    """A WebSocket; `expect` of the handshake's answer: `status` (101), `headers`."""
    told = {
        "Sec-WebSocket-Protocol": str(world.fill(protocol or "")),
        **world.headers(headers, auth),
    }
    url = world.url + world.fill(path)
    async with _patience(world, lambda: "no answer to the handshake"):
        socket = await WebSocket.open(url, told, window=window, pong=pong)
        while await asked_to_wait(socket.status, socket.headers):
            await socket.cut()
            socket = await WebSocket.open(url, told, window=window, pong=pong)
    world.add(as_, socket)
    world.check({"status": 101, **expect}, {"status": socket.status, "headers": socket.headers})


async def plain(
    world: World,
    id_: str,
    *,
    as_: str = MAIN,
    from_: Any = None,
    auth: str | None = None,
    expect: Mapping[str, Any] = {},
    window: int | None = None,
    pong: bool = True,
) -> None:
    """`connect` without a subprotocol."""
    path = f"/ws/streams/{id_}" + ("" if from_ is None else f"?from={from_}")
    await connect(world, path, as_=as_, auth=auth, expect=expect, window=window, pong=pong)


async def msp(
    world: World,
    id_: str,
    *,
    as_: str = MAIN,
    auth: str | None = None,
    window: int | None = None,
    pong: bool = True,
) -> None:
    """`connect` with `msp.v1+json`, and `welcome`."""
    await connect(
        world,
        f"/ws/streams/{id_}",
        as_=as_,
        protocol=PROTOCOL,
        auth=auth,
        expect={"headers": {"sec-websocket-protocol": PROTOCOL}},
        window=window,
        pong=pong,
    )
    await expect(world, [{"type": "welcome"}], client=as_)


async def sse(
    world: World,
    id_: str,
    *,
    as_: str = MAIN,
    from_: Any = None,
    query: str = "",
    headers: Mapping[str, Any] = {},
    auth: str | None = None,
    expect: Mapping[str, Any] = {},
) -> None:
    """Follows with SSE; `expect` of the answer: `status` (200), `headers`, `json`."""
    start = "" if from_ is None else f"from={from_}&"
    url = f"{world.url}/api/v1/streams/{world.fill(id_)}/sse?{world.fill(start + query)}"
    request = world.http.build_request("GET", url, headers=world.headers(headers, auth))
    async with _patience(world, lambda: "no answer"):
        response = await world.http.send(request, stream=True)
        while await asked_to_wait(response.status_code, response.headers):
            await response.aclose()
            response = await world.http.send(request, stream=True)
        if response.status_code == 200:
            world.add(as_, EventSource(response))
            answer = {"status": 200, "headers": dict(response.headers)}
        else:
            await response.aread()
            answer = answer_of(response)
    world.check({"status": 200, **expect}, answer)


# To say something


async def send(world: World, message: Any, *, client: str = MAIN) -> None:
    """A text message: a text as it stands, anything else as JSON; a list is sent one by one."""
    socket = world.socket(client)
    messages = cast("list[Any]", message if isinstance(message, list) else [message])
    for told in map(world.fill, messages):
        socket.send(TEXT, (told if isinstance(told, str) else json.dumps(told)).encode())


async def subscribe(
    world: World, options: Mapping[str, Any], *, client: str = MAIN, expect: Any = None
) -> None:
    """`subscribe` of `$id` (or another `id`), and its `subscribed`."""
    asked = world.fill({"id": "$id", **options})
    await send(world, {"type": "subscribe", **asked}, client=client)
    await await_(world, {"type": "subscribed", "id": asked["id"], **(expect or {})}, client=client)


async def send_media(world: World, frame: Mapping[str, Any], *, client: str = MAIN) -> None:
    """A binary message: a media frame of these fields; `payload` in hex, or `size` zeros."""
    fields = world.fill(frame)
    payload = bytes.fromhex(fields.pop("payload", "")) or bytes(fields.pop("size", 0))
    world.socket(client).send(BINARY, media_frame({**fields, "payload": payload}))


async def send_binary(world: World, hex: str, *, client: str = MAIN) -> None:
    """A binary message of these bytes."""
    world.socket(client).send(BINARY, bytes.fromhex(world.fill(hex)))


async def send_frame(world: World, frame: Mapping[str, Any], *, client: str = MAIN) -> None:
    """One WebSocket frame: `opcode`, `text` or `hex`, and how it is wrong: `fin`, `rsv`, `mask`,
    `length`; `cut`: only so many of its bytes are sent."""
    told = dict(frame)
    opcode, cut_at = told.pop("opcode"), told.pop("cut", None)
    text = world.fill(told.pop("text", ""))
    data = (
        bytes.fromhex(told.pop("hex", ""))
        or (text if isinstance(text, str) else json.dumps(text)).encode()
    )
    world.socket(client).write(websocket_frame(opcode, data, **told)[:cut_at])


async def close(world: World, code: int, *, client: str = MAIN) -> None:
    """Says goodbye."""
    world.socket(client).send(CLOSE, struct.pack(">H", code))


async def cut(world: World, client: str) -> None:
    """The connection is gone, without a word."""
    await world.client(client).cut()


# To hear something


async def expect(world: World, patterns: list[Any], *, client: str = MAIN) -> None:
    """The next messages, in order; what may come at any time is passed over."""
    for pattern in patterns:
        await _await(world, pattern, client, _may_pass)


async def await_(world: World, pattern: Any, *, client: str = MAIN) -> None:
    """The first message that fits; all others are passed over."""
    await _await(world, pattern, client, _anything)


async def sequence(
    world: World, ends: list[Any], *, client: str = MAIN, then: Sequence[Step] = ()
) -> None:
    """Records with all the sequences from the first to the last, in order, of any form.

    `then`: steps after each, with its sequence as `$n`.
    """
    first, last = world.fill(ends)
    for number in range(first, last + 1):
        record = {"type": {"$regex": "^stream_"}, "sequence": number}
        forms = [record, {"binary": {"sequence": number}}, {"data": record}]
        await _await(world, {"$in": forms}, client, _may_pass)
        world.bound["n"] = number
        await play(world, then)


async def quiet(world: World, client: str) -> None:
    """Nothing but what may come at any time, up to the answer to a `ping`."""
    await send(world, {"type": "ping", "quiet": True}, client=client)
    await _await(world, {"type": "pong", "quiet": True}, client, _may_pass)


async def closed(world: World, pattern: Any, *, client: str = MAIN, after: str = "nothing") -> None:
    """The connection's end: `{code, reason}`, or the code alone; 1006 is an end without goodbye.

    `after: anything` passes over what still came before.
    """
    wanted = {"code": pattern} if isinstance(pattern, int) else pattern
    passing = _anything if after == "anything" else _may_pass
    await _await(world, {"closed": wanted}, client, passing)


async def _await(
    world: World, pattern: Any, client: str, may_pass: Callable[[Message], bool]
) -> None:
    passed: list[Message] = []

    def before() -> str:
        return f" (passed over: {shown(passed)})" if passed else ""

    async with _patience(world, lambda: f"nothing like {shown(pattern)} came{before()}"):
        while fault := match(pattern, message := await world.next(client), world.bound):
            if "closed" in message or not may_pass(message):
                raise FailedError(f"{fault}; got {shown(message)}{before()}")
            passed.append(message)


def _may_pass(message: Message) -> bool:
    return message.get("type", message.get("event")) in AT_ANY_TIME


def _anything(_: Message) -> bool:
    return True


# Several things


async def together(world: World, branches: list[list[Step]]) -> None:
    """All the lists of steps at the same time; each on connections of its own."""
    try:
        async with asyncio.TaskGroup() as group:
            for steps in branches:
                group.create_task(play(world, steps))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


async def repeat(world: World, times: int, *, steps: list[Step]) -> None:
    """The steps, with `$i` from 1 to `times`."""
    for number in range(1, times + 1):
        world.bound["i"] = number
        await play(world, steps)


async def let(world: World, names: Mapping[str, Any]) -> None:
    """Remembers."""
    world.bound.update(world.fill(names))


async def check(world: World, pattern: Any, *, of: Any) -> None:
    """That what was remembered fits."""
    world.check(pattern, world.fill(of))


@contextlib.asynccontextmanager
async def _patience(world: World, complaint: Callable[[], str]) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(world.timeout_s):
            yield
    except TimeoutError as error:
        raise FailedError(complaint()) from error


VERBS: dict[str, Callable[..., Awaitable[None]]] = {
    "init": init,
    "publish": publish,
    "end": end,
    "http": http,
    "connect": connect,
    "plain": plain,
    "msp": msp,
    "sse": sse,
    "send": send,
    "subscribe": subscribe,
    "send_media": send_media,
    "send_binary": send_binary,
    "send_frame": send_frame,
    "close": close,
    "cut": cut,
    "expect": expect,
    "await": await_,
    "sequence": sequence,
    "quiet": quiet,
    "closed": closed,
    "together": together,
    "repeat": repeat,
    "let": let,
    "check": check,
}
