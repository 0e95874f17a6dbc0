"""The gateway: routers of all rooms behind one admission, as one ASGI application."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware

import mentatlab
from mentatlab.gateway.admission import EXPOSED, LOOPBACK_ORIGIN, Admission
from mentatlab.gateway.agents_routes import agents_router
from mentatlab.gateway.asgi import AdmissionMiddleware
from mentatlab.gateway.credentials import KeyLookup
from mentatlab.gateway.flows_routes import flows_router
from mentatlab.gateway.head_method import HeadMiddleware
from mentatlab.gateway.identity import Caller, authorise, caller, scopes_of
from mentatlab.gateway.keys_routes import keys_router
from mentatlab.gateway.problems import MEDIA_TYPE, ProblemDetails, install
from mentatlab.gateway.run_control_routes import run_control_router
from mentatlab.gateway.run_events import run_events_router
from mentatlab.gateway.run_replay import replay_router
from mentatlab.gateway.run_views import run_views_router
from mentatlab.gateway.runs_routes import runs_router
from mentatlab.gateway.schedule_routes import schedules_router
from mentatlab.gateway.secret_routes import secrets_router
from mentatlab.gateway.storage_admin_routes import storage_admin_router
from mentatlab.gateway.storage_answers import Accel
from mentatlab.gateway.storage_download import Access, Downloads, DownloadsFirst, download_router
from mentatlab.gateway.storage_routes import storage_router
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_portable import portable_router
from mentatlab.gateway.stream_routes import stream_router
from mentatlab.gateway.subscription_routes import subscriptions_router
from mentatlab.gateway.system_routes import system_router
from mentatlab.gateway.tus_routes import TusMiddleware, tus_router
from mentatlab.gateway.uploader import uploader
from mentatlab.gateway.uploads_routes import uploads_router
from mentatlab.gateway.webhook_routes import webhooks_router
from mentatlab.runs.deliveries import DeliveryStore
from mentatlab.runs.engine import Engine
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.key_store import KeyStore
from mentatlab.runs.reading import RunReader
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.schedules import ScheduleStore
from mentatlab.runs.secrets import SecretStore
from mentatlab.runs.subscriptions import SubscriptionStore
from mentatlab.runs.triggers import Triggers
from mentatlab.runs.webhooks import WebhookStore
from mentatlab.storage import StorageManager
from mentatlab.streams import StreamingConnectionManager

DESCRIPTION = (
    "Flows of multimodal agents: submit runs, follow streams, store media. "
    "Errors are RFC 9457 problem documents."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the gateway speaks for. `manifests`: a folder for manifests that come as documents."""

    engine: Engine
    runs: RunReader
    agents: AgentRegistry
    flows: FlowStore
    keys: KeyStore
    secrets: SecretStore
    schedules: ScheduleStore
    webhooks: WebhookStore
    subscriptions: SubscriptionStore
    deliveries: DeliveryStore
    triggers: Triggers
    url: str
    storage: StorageManager
    hub: StreamingConnectionManager
    connections: Connections
    manifests: Path


def create_gateway(
    services: Services, admission: Admission, *, multimodal: bool = True, accel: Accel | None = None
) -> FastAPI:
    """`multimodal`: the feature flag; off = refused with FEATURE_DISABLED. `accel`: an nginx before
    this server that sends files itself."""
    app = FastAPI(
        title="MentatLab",
        version=mentatlab.__version__,
        description=DESCRIPTION,
        docs_url=None,  # the stock page loads its scripts from elsewhere; ours is in system_routes
        redoc_url=None,
        responses={"default": _problem_answer()},
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    install(app)
    for router in _routers(services, admission, multimodal):
        app.include_router(router)
    downloads = Downloads(services.storage, storage_reader, accel)
    app.include_router(download_router(downloads, admission.rules.url_keys))  # `/{ref}` comes last
    app.add_middleware(HeadMiddleware)
    app.add_middleware(DownloadsFirst, downloads=downloads)
    app.add_middleware(AdmissionMiddleware, admission=admission)
    app.add_middleware(TusMiddleware)
    app.add_middleware(
        CORSMiddleware,  # outside: a preflight carries no credential
        allow_origins=sorted(admission.rules.origins),
        allow_origin_regex=LOOPBACK_ORIGIN,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    return app


def _routers(services: Services, admission: Admission, multimodal: bool) -> list[APIRouter]:
    return [
        agents_router(services.agents, manifests=services.manifests),
        flows_router(services.flows, services.agents),
        runs_router(services.engine, services.flows, services.agents, multimodal=multimodal),
        run_control_router(services.engine),
        run_events_router(services.runs),
        run_views_router(services.runs),
        replay_router(services.runs, streaming=admission.rules.streaming),
        storage_router(services.storage, storage_workspace, uploader),
        storage_admin_router(services.storage),
        uploads_router(services.storage.uploads, uploader, storage_workspace),
        tus_router(services.storage.uploads, uploader),
        keys_router(services.keys),
        secrets_router(services.secrets),
        schedules_router(services.schedules, services.triggers),
        webhooks_router(services.webhooks, services.triggers, url=services.url),
        subscriptions_router(services.subscriptions, services.deliveries, services.flows),
        stream_router(services.hub, admission),
        portable_router(services.connections),
        system_router(services.agents, services.connections, services.storage, admission.book),
    ]


def _problem_answer() -> dict[str, Any]:
    return {
        "description": "An error",
        "model": ProblemDetails,
        "content": {MEDIA_TYPE: {}},
    }


def key_lookup(keys: KeyStore) -> KeyLookup:
    async def lookup(presented: str) -> Caller | None:
        key = await keys.verify(presented)
        if key is None:
            return None
        return Caller(workspace=key.workspace, scopes=scopes_of(key.scopes), name=key.id)

    return lookup


def storage_workspace(request: Request) -> str:
    """Whose blobs a storage call is about."""
    who, needed = caller(request), "read" if request.method in ("GET", "HEAD") else "publish"
    authorise(who, needed)
    return who.workspace


def storage_reader(request: Request) -> Access:
    """Whose blobs a download is about: of who may read, or as a signed address says (admission
    has seen that it is for this blob and method)."""
    who = caller(request)
    if who.grant is None:
        authorise(who, "read")
    return Access(who.workspace, who.grant)
