"""The classes that an agent extends. One object serves all invocations of its process; what belongs
to one invocation (`context`, `params`, the streams) is looked up by the running task.

`progress`, `checkpoint`, `log` and `metric` are plain calls, also from threads; what moves data is
awaited.
"""

from collections.abc import AsyncIterable, Awaitable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, cast

from mentatlab.protocol.media import is_reference
from mentatlab.protocol.stdio import Context
from mentatlab.sdk.errors import AgentError as AgentError
from mentatlab.sdk.files import Source, send_output, suffix_for, write_output
from mentatlab.sdk.invocation import current, one_of_batch
from mentatlab.sdk.opening import OpenMedia
from mentatlab.sdk.session import run

Level = Literal["debug", "info", "warning", "error"]


class Agent:
    """`process(inputs)` takes pins and params by name and returns the output pins by name.

    It may be sync (then it runs in a thread) or async. A class attribute `concurrency` over 1 lets
    a warm process serve that many invocations at a time.

    An agent may have `process_batch(inputs: list) -> list` in its place: with `execution.batch` in
    the manifest it gets several invocations at once, and gives for each its outputs or an
    exception. `with self.item(index):` says whose log, metrics and files follow.
    """

    concurrency: int = 1

    def process(self, inputs: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    @classmethod
    def main(cls) -> None:
        """Serve the host on stdin and stdout, as `mentatlab.sdk.run(cls)`."""
        run(cls)

    def item(self, index: int) -> AbstractContextManager[None]:
        """In `process_batch`: what is done inside belongs to the input of that index."""
        return one_of_batch(index)

    @property
    def context(self) -> Context:
        """Run, node, attempt, `deadline` (Unix seconds), `out_dir`, `resume_state`, …"""
        return current().context

    @property
    def params(self) -> Mapping[str, Any]:
        """The node's params; the same mapping as `inputs`."""
        return current().inputs

    @property
    def resume_state(self) -> Any:
        """What the last attempt's `checkpoint` saved; None in a first attempt."""
        return current().context.resume_state

    @property
    def cancelled(self) -> bool:
        """For a sync `process`: return soon. Async code gets `CancelledError` instead."""
        return current().cancelled.is_set()

    def log(self, message: str, level: Level = "info", data: Any = None) -> None:
        current().emit("log", message=message, level=level, data=data)

    def progress(
        self,
        percent: float | None = None,
        *,
        current: float | None = None,
        total: float | None = None,
        eta_seconds: float | None = None,
        message: str | None = None,
    ) -> None:
        """`percent` (0 to 100), or `current` of `total`."""
        _emit(
            "progress",
            percent=percent,
            current=current,
            total=total,
            eta_seconds=eta_seconds,
            message=message,
        )

    def metric(self, name: str, value: float, unit: str = "") -> None:
        current().emit("metric", name=name, value=value, unit=unit)

    def checkpoint(
        self,
        state: Any,
        *,
        stage: str = "",
        progress: float | None = None,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        """Save JSON `state` (at most 1 MiB) for the next attempt, should this one fail.

        `offsets`: per stream input the last sequence whose effect is in `state`; by default the
        last element that was handed out. The next attempt's streams go on after it.
        """
        invocation = current()
        places = dict(offsets) if offsets is not None else invocation.delivered()
        invocation.emit("checkpoint", state=state, stage=stage, progress=progress, offsets=places)


def _emit(type_: str, **fields: Any) -> None:
    current().emit(type_, **fields)


class MultimodalAgent(Agent):
    """Media inputs are reference dicts; media outputs are files handed over by `upload_media`."""

    async def process_media(self, ref: Mapping[str, Any]) -> Any:
        """A medium in the form that this agent works with: its bytes. Override it to decode."""
        return await self.download_media(ref)

    async def download_media(self, ref: Mapping[str, Any]) -> bytes:
        """The whole medium in memory; `open_media` for large ones."""
        async with self.open_media(ref) as medium:
            return await medium.read()

    def open_media(self, ref: Mapping[str, Any]) -> OpenMedia:
        """The medium as a seekable binary file: in place when it is on this machine, else by
        ranges, 8 MiB of it in memory.

        `with` gives the file, for threads and a sync `process`; `async with` one whose `read`,
        `seek` and iteration are awaited. `AgentError` with a code when it cannot be read.
        """
        return OpenMedia(ref)

    async def upload_media(
        self, pin: str, data: Source, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Hand over bytes, a file or an async iterable of bytes; the value to return for `pin` or
        to stream.

        `metadata`: what is known of it, e.g. `{"mimeType": "image/jpeg"}`. The host stores the file
        once. Where host and agent share no folder it travels over HTTP, resumed after cuts.
        """
        invocation = current()
        context = invocation.context
        name = f"{pin}-{invocation.new_file_number()}{suffix_for(data, metadata)}"
        if not context.out_dir and context.url:
            return await send_output(context.url, context.token, name, data, metadata)
        path = await write_output(Path(context.out_dir or "."), name, data)
        value: dict[str, Any] = {"path": str(path.absolute())}
        return value | {"metadata": dict(metadata)} if metadata else value


class StreamingAgent(MultimodalAgent):
    """Stream inputs are async iterators; stream outputs go out item by item as they are made."""

    async def init_stream(self, pin: str) -> str:
        """The stream of an output pin; the same one each time."""
        return current().open_output(pin)

    async def send_chunk(
        self,
        stream_id: str,
        chunk: Any,
        *,
        pts: float | None = None,
        duration: float | None = None,
        final: bool = False,
    ) -> None:
        """One element: a JSON value, a media reference, or what `upload_media` gave. Waits for
        credit.

        `pts` and `duration` are seconds of media time; `final` marks the last one.
        """
        more: dict[str, Any] = {"pts": pts, "duration": duration, "final": final or None}
        body = _chunk_body(chunk) | {k: v for k, v in more.items() if v is not None}
        await current().send_chunk(stream_id, body)

    async def end_stream(self, stream_id: str) -> None:
        """Nothing may be sent on it any more. The host ends the stream itself when the node has
        ended.
        """
        current().close_output(stream_id)

    async def stream_output(self, pin: str, items: Any) -> str:
        """All elements of an async iterable, or one item; successive calls go on with the same
        stream.
        """
        stream_id = await self.init_stream(pin)
        if isinstance(items, AsyncIterable):
            async for item in cast("AsyncIterable[Any]", items):
                await self.send_chunk(stream_id, item)
        else:
            await self.send_chunk(stream_id, items)
        return stream_id


def _chunk_body(chunk: Any) -> dict[str, Any]:
    if isinstance(chunk, dict):
        body = cast("dict[str, Any]", chunk)
        if is_reference(body):
            return {"ref": body}
        if "path" in body and body.keys() <= {"path", "metadata"}:
            return body
    return {"data": chunk}


BaseAgent = Agent
