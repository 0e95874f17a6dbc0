"""Settings → adapters → engine → gateway: the only wiring."""

import asyncio
import contextlib
import errno
import importlib
import logging
import os
import re
import socket
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI

from mentatlab import home as home_folder
from mentatlab.database import Database
from mentatlab.gateway.admission import Admission, Rules, is_loopback, token_secret
from mentatlab.gateway.api import Services, create_gateway, key_lookup
from mentatlab.gateway.server import Tls, Transport, serving
from mentatlab.gateway.signed_urls import UrlKeys, UrlSigner, own_keys, parse_keys
from mentatlab.gateway.storage_answers import Accel
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.streams import Streams
from mentatlab.protocol.agent import is_reserved
from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.protocol.pins import parse_size
from mentatlab.runners import LocalRunner, RunnerSettings
from mentatlab.runs.deliveries import DeliveryStore, Sender
from mentatlab.runs.engine import Engine
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.key_store import KeyStore
from mentatlab.runs.limits import Limits
from mentatlab.runs.posting import Poster
from mentatlab.runs.reading import RunReader
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.schedules import Scheduler, ScheduleStore
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.secrets import Seal, SecretStore
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.subscriptions import SubscriptionStore
from mentatlab.runs.triggers import Triggers
from mentatlab.runs.webhooks import WebhookStore
from mentatlab.sqlite import Database as SqliteDatabase
from mentatlab.storage import NO_QUOTA, Choice, Quota, open_storage, read_choice
from mentatlab.storage.port import BlobStore
from mentatlab.storage.s3_inputs import InputPlaces, open_s3_inputs, read_places
from mentatlab.storage.s3_login import Login
from mentatlab.storage.schema import POSTGRES as CATALOG_SCHEMA
from mentatlab.storage.segments import BlobSegments
from mentatlab.streams import SegmentFolder, StreamingConnectionManager, StreamLog, open_hub

DEFAULT_PORT = 7070
BACKLOG = 2048
LEAST_SECRET = 32
DEFAULT_PREFIX = "mentatlab:"
DEFAULT_NAMESPACE = "mentatlab"
_logger = logging.getLogger("mentatlab")
_PACKAGE = Path(__file__).resolve().parent


def bundled_agents() -> Path:
    """The agents of the wheel, or of the checkout that this is."""
    wheel = _PACKAGE / "_agents"
    return wheel if wheel.is_dir() else _PACKAGE.parents[1] / "agents"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLog:
    """A Redis that keeps the streams of several servers."""

    url: str = field(repr=False)
    prefix: str = DEFAULT_PREFIX
    allow_relaxed: bool = False  # commit streams though it may lose what it acknowledged


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDatabase:
    """A Postgres that keeps runs, flows, keys and the catalogue, in the schema `namespace`."""

    url: str = field(repr=False)
    namespace: str = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the environment and the command line may decide, read once."""

    home: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0 = a free one
    agent_dirs: tuple[Path, ...] = field(default_factory=lambda: (bundled_agents(),))
    multimodal: bool = True
    streaming: bool = True
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    recover: bool = True  # go on with the runs that a former server left
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # for agents
    rate: float = 200.0  # requests a second and key, 0 = no limit
    burst: float = 400.0
    record_rate: float = 0.0  # published records a second and key, 0 = no limit
    max_object: int = 5 * 10**9  # bytes of one upload, or of one output of an agent
    storage: Choice = "local"  # in the home, in memory, or in a bucket
    s3_inputs: InputPlaces | None = None  # buckets that runs may take their inputs from
    quota: Quota = NO_QUOTA  # of each workspace
    limits: Limits = field(default_factory=Limits)  # of runs
    webhook_private: bool = False  # webhooks may call addresses inside this network
    scrub_rate: int = 8 << 20  # bytes a second that are read again and verified, 0 = none
    pool_memory: int = 0  # bytes of all warm agents together, 0 = the machine's
    log: SharedLog | None = None  # None = in the home
    database: SharedDatabase | None = None  # None = in the home
    token_secret: str = field(default="", repr=False)  # "" = one of the home's own
    url_keys: UrlKeys | None = field(default=None, repr=False)  # None = made of that secret
    accel: str = ""  # nginx's internal location of the home's blobs/
    transport: Transport = "auto"  # of WebSockets and SSE
    tls: Tls | None = None

    @property
    def replicas(self) -> bool:
        """Whether other servers may share everything with this one."""
        shared = self.database is not None and self.log is not None
        return shared and isinstance(self.storage, Login)

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def read_settings(
    environ: Mapping[str, str] = os.environ,
    *,
    home: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    agent_dirs: tuple[Path, ...] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Settings:
    """Options win over `MENTATLAB_HOME _HOST _PORT _AGENTS _HOSTS _ORIGINS _RATE _BURST
    _RECORD_RATE _MAX_OBJECT _MAX_RUNS _MAX_QUEUED _MAX_ITEMS _QUOTA_BYTES _QUOTA_COUNT
    _SCRUB_RATE _DATABASE _DATABASE_SCHEMA _LOG _REDIS_PREFIX _REDIS_ALLOW_RELAXED
    _TOKEN_SECRET _URL_KEYS _ACCEL
    _TRANSPORT _TLS_CERT _TLS_KEY _POOL_MEMORY _WEBHOOK_PRIVATE _STORAGE _S3_PREFIXES`,
    `ENABLE_MULTIMODAL ENABLE_STREAMING` and what `storage.read_choice` reads
    (`S3_ENDPOINT` …); `Invalid(BAD_SETTING)` names the variable that is wrong.

    Agents are looked for in `agent_dirs`, `MENTATLAB_AGENTS`, `<home>/agents`, the bundled folder.
    """
    place = home or Path(environ.get("MENTATLAB_HOME") or home_folder.default_home()).expanduser()
    named = [Path(p).expanduser() for p in _split(environ.get("MENTATLAB_AGENTS"), os.pathsep)]
    return Settings(
        home=place.absolute(),
        host=host or environ.get("MENTATLAB_HOST") or "127.0.0.1",
        port=_number(environ, "MENTATLAB_PORT", DEFAULT_PORT, most=65535) if port is None else port,
        agent_dirs=(*agent_dirs, *named, place / "agents", bundled_agents()),
        multimodal=_flag(environ, "ENABLE_MULTIMODAL"),
        streaming=_flag(environ, "ENABLE_STREAMING"),
        hosts=frozenset(_split(environ.get("MENTATLAB_HOSTS"), ",")),
        origins=frozenset(_split(environ.get("MENTATLAB_ORIGINS"), ",")),
        rate=_number(environ, "MENTATLAB_RATE", 200),
        burst=_number(environ, "MENTATLAB_BURST", 400),
        record_rate=_number(environ, "MENTATLAB_RECORD_RATE", 0),
        max_object=_size(environ, "MENTATLAB_MAX_OBJECT", "5GB"),
        storage=read_choice(environ),
        s3_inputs=read_places(environ),
        quota=Quota(
            bytes=_size(environ, "MENTATLAB_QUOTA_BYTES", "0"),
            count=_number(environ, "MENTATLAB_QUOTA_COUNT", 0),
        ),
        limits=_limits(environ),
        webhook_private=_flag(environ, "MENTATLAB_WEBHOOK_PRIVATE", default="false"),
        scrub_rate=_size(environ, "MENTATLAB_SCRUB_RATE", "8MiB"),
        pool_memory=_size(environ, "MENTATLAB_POOL_MEMORY", "0"),
        log=_log(environ),
        database=_database(environ),
        token_secret=_secret(environ),
        url_keys=_url_keys(environ),
        accel=_accel(environ),
        transport=_transport(environ),
        tls=_tls(environ, tls_cert, tls_key),
        environment={k: v for k, v in environ.items() if not is_reserved(k)},
    )


def _limits(environ: Mapping[str, str]) -> Limits:
    usual = Limits()
    return Limits(
        max_runs=_number(environ, "MENTATLAB_MAX_RUNS", usual.max_runs, least=1),
        max_queued=_number(environ, "MENTATLAB_MAX_QUEUED", usual.max_queued),
        max_items=_number(environ, "MENTATLAB_MAX_ITEMS", usual.max_items, least=1),
    )


def _log(environ: Mapping[str, str]) -> SharedLog | None:
    url = environ.get("MENTATLAB_LOG") or "sqlite"
    if url == "sqlite":
        return None
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise _bad_setting(
            "MENTATLAB_LOG", url.partition(":")[0], "write sqlite, or redis://HOST:PORT/0"
        )
    return SharedLog(
        url=url,
        prefix=environ.get("MENTATLAB_REDIS_PREFIX") or DEFAULT_PREFIX,
        allow_relaxed=_flag(environ, "MENTATLAB_REDIS_ALLOW_RELAXED", default="false"),
    )


def _database(environ: Mapping[str, str]) -> SharedDatabase | None:
    url = environ.get("MENTATLAB_DATABASE") or "sqlite"
    if url == "sqlite":
        return None
    if not url.startswith(("postgresql://", "postgres://")):
        hint = "write sqlite, or postgresql://USER:PASSWORD@HOST:5432/NAME"
        raise _bad_setting("MENTATLAB_DATABASE", url.partition(":")[0], hint)
    namespace = environ.get("MENTATLAB_DATABASE_SCHEMA") or DEFAULT_NAMESPACE
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", namespace):
        hint = "write a name of lower-case letters, digits and _"
        raise _bad_setting("MENTATLAB_DATABASE_SCHEMA", namespace, hint)
    return SharedDatabase(url=url, namespace=namespace)


def _secret(environ: Mapping[str, str]) -> str:
    secret = environ.get("MENTATLAB_TOKEN_SECRET") or ""
    if 0 < len(secret) < LEAST_SECRET:
        hint = f"write at least {LEAST_SECRET} characters that nobody can guess"
        raise _bad_setting("MENTATLAB_TOKEN_SECRET", "***", hint)
    return secret


def _split(text: str | None, separator: str) -> list[str]:
    return [part.strip() for part in (text or "").split(separator) if part.strip()]


def _number(
    environ: Mapping[str, str], name: str, default: int, *, least: int = 0, most: int = 10**9
) -> int:
    text = environ.get(name) or str(default)
    if text.isascii() and text.isdigit() and least <= int(text) <= most:
        return int(text)
    raise _bad_setting(name, text, f"write a number from {least} to {most}")


def _size(environ: Mapping[str, str], name: str, default: str) -> int:
    text = environ.get(name) or default
    try:
        return parse_size(text)
    except Invalid as error:
        raise _bad_setting(name, text, error.hint) from error


def _url_keys(environ: Mapping[str, str]) -> UrlKeys | None:
    text = environ.get("MENTATLAB_URL_KEYS")
    return parse_keys(text) if text else None


def _accel(environ: Mapping[str, str]) -> str:
    text = environ.get("MENTATLAB_ACCEL") or ""
    if text and not (len(text) > 1 and text.startswith("/") and text.endswith("/")):
        raise _bad_setting("MENTATLAB_ACCEL", text, "write the location's name, /internal/blobs/")
    return text


def _transport(environ: Mapping[str, str]) -> Transport:
    text = environ.get("MENTATLAB_TRANSPORT") or "auto"
    for known in get_args(Transport):
        if text == known:
            return known
    raise _bad_setting("MENTATLAB_TRANSPORT", text, "write auto, picows or portable")


def _tls(environ: Mapping[str, str], certificate: Path | None, key: Path | None) -> Tls | None:
    cert_file = certificate or environ.get("MENTATLAB_TLS_CERT")
    key_file = key or environ.get("MENTATLAB_TLS_KEY")
    if not cert_file and not key_file:
        return None
    if not cert_file or not key_file:
        alone = "MENTATLAB_TLS_CERT" if cert_file else "MENTATLAB_TLS_KEY"
        raise _bad_setting(alone, str(cert_file or key_file), "TLS takes a certificate and its key")
    return Tls(Path(cert_file).expanduser(), Path(key_file).expanduser())


_YES, _NO = ("1", "true", "on", "yes"), ("0", "false", "off", "no")


def _flag(environ: Mapping[str, str], name: str, *, default: str = "true") -> bool:
    text = environ.get(name) or default
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise _bad_setting(name, text, "write true or false")


def _bad_setting(name: str, text: str, hint: str) -> Invalid:
    return Invalid(Code.BAD_SETTING, f"{name}={text!r} is not usable", hint=hint)


def bind(settings: Settings) -> socket.socket:
    """A listening socket; `Conflict(PORT_IN_USE)`, `Invalid(BAD_SETTING)`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise _bad_setting("host", settings.host, "give an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)  # two that bind together: here at the latest one of them learns it
    except OSError as error:
        listener.close()
        raise _cannot_bind(settings, error) from error
    return listener


def _cannot_bind(settings: Settings, error: OSError) -> Conflict | Invalid:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            Code.PORT_IN_USE,
            f"another program listens on {where}",
            hint="choose another port with --port (0 = any free one)",
        )
    return Invalid(
        Code.BAD_SETTING,
        f"cannot listen on {where}: {error.strerror}",
        hint="choose another --host or --port",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The rooms, open. `asgi` is the gateway behind `admission`; `key` the home's own key."""

    settings: Settings
    key: str
    services: Services
    admission: Admission
    asgi: FastAPI

    @property
    def url(self) -> str:
        return self.settings.url


@contextlib.asynccontextmanager
async def build(settings: Settings) -> AsyncGenerator[App]:
    """Opens the rooms of a home that the caller has locked; closes them in reverse.

    `Invalid(KEYS_REQUIRED)` when it would answer the network without keys.
    """
    key, place = home_folder.home_key(settings.home), settings.home
    secret = token_secret(settings.token_secret or key)
    url_keys = settings.url_keys or own_keys(settings.token_secret or key)
    async with contextlib.AsyncExitStack() as stack:
        database, catalog = await _open_databases(settings)
        stack.push_async_callback(database.aclose)
        if catalog is not None:
            stack.push_async_callback(catalog.aclose)
        keys = KeyStore(database)
        seal = Seal(settings.token_secret or key)
        secrets = SecretStore(database, seal)
        await _check_keys(settings, keys)
        storage, segments = await stack.enter_async_context(
            open_storage(
                settings.storage,
                place,
                home_key=settings.token_secret if settings.replicas else key,
                max_bytes=settings.max_object,
                quota=settings.quota,
                database=catalog,
            )
        )
        storage.life.scrub.rate = settings.scrub_rate
        await stack.enter_async_context(_beside(storage.life.sweep_forever()))
        await stack.enter_async_context(_beside(storage.life.scrub.run_forever()))
        hub = await _open_streams(settings, secret, segments)
        stack.push_async_callback(hub.aclose)
        await stack.enter_async_context(_beside(hub.sweep_forever()))
        await stack.enter_async_context(_beside(hub.tidy_forever()))
        connections = Connections(hub)
        await stack.enter_async_context(_beside(connections.adopt_forever()))
        agents = AgentRegistry(settings.agent_dirs, database)
        await agents.load()
        runner = LocalRunner(RunnerSettings(pool_memory=settings.pool_memory))
        stack.push_async_callback(runner.aclose)
        engine = Engine(
            store=SqlRunStore(database),
            hub=hub,
            storage=storage,
            runner=runner,
            registry=agents,
            scratch=place / "scratch",
            environment=settings.environment,
            secret=secret,
            limits=settings.limits,
            streaming=settings.streaming,
            url=settings.url,
            secrets_for=secrets.secrets_for,
            sign=UrlSigner(url_keys, settings.url, time.time).sign,
            s3_inputs=await stack.enter_async_context(open_s3_inputs(settings.s3_inputs)),
        )
        stack.push_async_callback(engine.aclose)
        if settings.recover:
            await engine.start()
        flows, schedules = FlowStore(database), ScheduleStore(database)
        triggers = Triggers(engine, SqlRunStore(database), flows, agents)
        if settings.recover:
            scheduler = Scheduler(schedules, triggers.submit, triggers.active)
            await stack.enter_async_context(_beside(scheduler.run_forever()))
        deliveries, poster = DeliveryStore(database), Poster(private=settings.webhook_private)
        stack.push_async_callback(poster.aclose)
        if settings.recover:
            sender = Sender(deliveries, poster.post, seal, secrets.secrets_for)
            await stack.enter_async_context(_beside(sender.run_forever()))
        services = Services(
            engine=engine,
            runs=RunReader(SqlRunStore(database), hub),
            agents=agents,
            flows=flows,
            keys=keys,
            secrets=secrets,
            schedules=schedules,
            webhooks=WebhookStore(database, seal),
            subscriptions=SubscriptionStore(database, seal, poster.check),
            deliveries=deliveries,
            triggers=triggers,
            url=settings.url,
            storage=storage,
            hub=hub,
            connections=connections,
            manifests=place / "agents",
        )
        rules = _rules(settings, key, secret, url_keys)
        admission = Admission(rules, key_lookup(keys), hub)
        accel = Accel(settings.accel, (place / "blobs").resolve()) if settings.accel else None
        asgi = create_gateway(services, admission, multimodal=settings.multimodal, accel=accel)
        yield App(settings=settings, key=key, services=services, admission=admission, asgi=asgi)


async def _open_databases(settings: Settings) -> tuple[Database, Database | None]:
    """For runs, flows and keys, and for the catalogue; None = in the home.

    `Invalid(MISSING_EXTRA | BAD_SETTING)`, `Conflict(DATABASE_IN_USE)`.
    """
    shared = settings.database
    if shared is None:
        return await SqliteDatabase(settings.home / "runs.db", SCHEMA).open(), None
    if settings.replicas and not settings.token_secret:
        hint = "set it, to the same text on all servers of this database"
        raise _bad_setting("MENTATLAB_TOKEN_SECRET", "", hint)
    alone = not settings.replicas
    database = await _open_postgres(shared, "runs", SCHEMA, alone=alone)
    try:
        return database, await _open_postgres(shared, "catalog", CATALOG_SCHEMA, alone=alone)
    except BaseException:
        await database.aclose()
        raise


@contextlib.asynccontextmanager
async def open_catalog(settings: Settings) -> AsyncGenerator[Database | None]:
    """The catalogue for one that works on it while no server does; None = in the home.

    `Conflict(DATABASE_IN_USE)` while a server uses it, of this home or of another.
    """
    if settings.database is None:
        yield None
        return
    database = await _open_postgres(settings.database, "catalog", CATALOG_SCHEMA, alone=True)
    async with contextlib.aclosing(database):
        yield database


async def _open_postgres(
    shared: SharedDatabase, name: str, schema: Sequence[str], *, alone: bool
) -> Database:
    try:
        postgres = importlib.import_module("mentatlab.postgres")
    except ModuleNotFoundError as error:
        raise Invalid(
            Code.MISSING_EXTRA,
            "MENTATLAB_DATABASE names a Postgres, and the package to speak with it is missing",
            hint="pip install 'mentatlab[server,postgres]'",
        ) from error
    database: Database = await postgres.PostgresDatabase(
        shared.url, name, schema, namespace=shared.namespace, alone=alone
    ).open()
    return database


async def _open_streams(
    settings: Settings, secret: bytes, segments: BlobStore | None
) -> StreamingConnectionManager:
    """Of this home, or shared with other servers; `Invalid(MISSING_EXTRA | BAD_SETTING)`."""
    if settings.log is None:
        folder = SegmentFolder(settings.home / "streams-sealed")
        sealed = folder if segments is None else BlobSegments(segments, earlier=folder)
        return await open_hub(settings.home / "streams.db", sealed=sealed)
    try:
        redis = importlib.import_module("mentatlab.streams.redis")
    except ModuleNotFoundError as error:
        raise Invalid(
            Code.MISSING_EXTRA,
            "MENTATLAB_LOG names a Redis, and the package to speak with it is not installed",
            hint="pip install 'mentatlab[server,redis]'",
        ) from error
    shared = settings.log
    log: StreamLog = await redis.open_redis_log(
        shared.url, prefix=shared.prefix, allow_relaxed=shared.allow_relaxed, secret=secret
    )
    if not settings.replicas:
        _logger.info("streams are in Redis; runs, flows, keys and media are this server's own")
    return StreamingConnectionManager(log)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Endless housekeeping while the body runs. Not a task group: errors leave as they are."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _rules(settings: Settings, key: str, secret: bytes, url_keys: UrlKeys) -> Rules:
    return Rules(
        loopback=is_loopback(settings.host),
        home_key=key,
        token_secret=secret,
        url_keys=url_keys,
        hosts=settings.hosts,
        origins=settings.origins,
        rate=settings.rate,
        burst=settings.burst,
        record_rate=settings.record_rate,
        streaming=settings.streaming,
    )


async def _check_keys(settings: Settings, keys: KeyStore) -> None:
    if is_loopback(settings.host) or await keys.list():
        return
    raise Invalid(
        Code.KEYS_REQUIRED,
        f"on {settings.host} anybody could call this server, and there are no keys",
        hint="`mentatlab keys add --name me` makes one; or stay on 127.0.0.1",
    )


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncGenerator[App]:
    """The whole server, answering: lock, port, rooms, gateway, `server.json`.

    `Conflict(HOME_IN_USE | PORT_IN_USE)`, `Invalid(KEYS_REQUIRED | BAD_SETTING)`.
    On exit streams are drained, runs are left for the next start, agents are ended.
    """
    with home_folder.locked(settings.home), contextlib.closing(bind(settings)) as listener:
        port: int = listener.getsockname()[1]
        settings = replace(settings, port=port)
        async with (
            build(settings) as app,
            serving(
                app.asgi,
                listener,
                drain=app.services.hub.drain,
                streams=Streams(app.admission, app.services.connections),
                transport=settings.transport,
                tls=settings.tls,
            ),
        ):
            info = home_folder.ServerInfo(
                pid=os.getpid(), host=settings.host, port=port, url=settings.url
            )
            with home_folder.announced(settings.home, info):
                yield app
