"""Probes, metrics and the page that shows the API."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse

import mentatlab
from mentatlab.gateway.admission import Book
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.stream_connections import Connections
from mentatlab.protocol.errors import Code, Unavailable
from mentatlab.runs.registry import AgentRegistry
from mentatlab.storage import StorageManager

Reader = Annotated[Caller, Depends(requires("read"))]
DOCS = Path(__file__).with_name("docs.html")
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)


class Health(BaseModel):
    status: str
    version: str


def system_router(
    agents: AgentRegistry, connections: Connections, storage: StorageManager, book: Book
) -> APIRouter:
    router = APIRouter(tags=["server"])
    started = time.time()

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Health:
        return Health(status="ok", version=mentatlab.__version__)

    @router.get("/readyz", summary="It takes work; 503 while it stops, or its store is away")
    async def readyz() -> Health:
        if connections.hub.draining.is_set():
            raise Unavailable(
                Code.UNAVAILABLE, "the server is stopping", hint="try again when it is up"
            )
        await storage.check()
        return Health(status="ready", version=mentatlab.__version__)

    @router.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics(_: Reader) -> PlainTextResponse:
        lines = prometheus(
            [
                ("start_time_seconds", "When this process began to serve.", [("", started)]),
                ("agents", "Agents that flows may name.", [("", len(agents.list()))]),
                *_streams(connections),
                *await _storage(storage),
                *_requests(book),
            ]
        )
        return PlainTextResponse(lines, media_type="text/plain; version=0.0.4")

    @router.get("/", include_in_schema=False)
    async def front() -> RedirectResponse:
        return RedirectResponse("/docs")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {"Content-Security-Policy": DOCS_POLICY}
        return HTMLResponse(DOCS.read_text(), headers=headers)

    return router


Metric = tuple[str, str, list[tuple[str, float]]]
"""Name without prefix, help, and (labels, value) pairs; a counter's name ends in `_total`."""


def _streams(connections: Connections) -> list[Metric]:
    now, open_now = connections.hub.statistics(), connections.statistics()
    open_ = [(f'{{durability="{kind}"}}', float(count)) for kind, count in now.open.items()]
    return [
        ("streams_open", "Streams without their last record.", open_),
        (
            "stream_connections",
            "Open connections of streams.",
            [(f'{{kind="{kind}"}}', float(count)) for kind, count in open_now.open.items()],
        ),
        ("stream_connections_paused", "Not read just now.", [("", open_now.paused)]),
        ("stream_unsent_bytes", "Waiting for the peers to take them.", [("", open_now.held)]),
        ("stream_unsent_bytes_most", "Of these, for one.", [("", open_now.most_held)]),
        ("stream_publishers", "Streams that connections publish to.", [("", open_now.publishers)]),
        ("stream_publishers_stalled", "Of these, silent ones.", [("", open_now.stalled)]),
        (
            "streams_held_back",
            "Streams whose publishers wait for a reader.",
            [("", len(now.held_back))],
        ),
        ("stream_subscriptions", "Readers of streams.", [("", now.subscriptions)]),
        ("stream_held_bytes", "Bytes read for subscribers, not yet sent.", [("", now.held_bytes)]),
    ]


async def _storage(storage: StorageManager) -> list[Metric]:
    life = storage.life
    holdings = await life.holdings()
    swept = [(f'{{kind="{kind}"}}', float(n)) for kind, n in life.swept.items()]
    return [
        ("storage_bytes", "Stored, of all workspaces.", [("", holdings.bytes)]),
        ("storage_blobs", "The same, counted.", [("", holdings.count)]),
        ("storage_blobs_corrupt", "Of these, damaged ones.", [("", holdings.corrupt)]),
        ("storage_corrupted_total", "Found damaged.", [("", life.corrupted)]),
        ("storage_swept_total", "Removed because nobody needed it.", swept),
        ("storage_scrubbed_bytes_total", "Read again and verified.", [("", life.scrub.bytes)]),
    ]


def _requests(book: Book) -> list[Metric]:
    """By way in: http, sse, ws."""
    ended = [(f'{{edge="{edge}",status="{s}"}}', n) for (edge, s), n in book.requests.items()]
    refused = [(f'{{edge="{edge}",code="{c}"}}', n) for (edge, c), n in book.refusals.items()]
    return [
        ("requests_total", "Requests and connections that are over.", sorted(ended)),
        ("refusals_total", "Refused by admission, before anything was done.", sorted(refused)),
    ]


def prometheus(metrics: Iterable[Metric]) -> str:
    """Text format 0.0.4."""
    return "".join(
        f"# HELP mentatlab_{name} {text}\n# TYPE mentatlab_{name} {_kind(name)}\n"
        + "".join(f"mentatlab_{name}{labels} {value!r}\n" for labels, value in values)
        for name, text, values in metrics
    )


def _kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"
