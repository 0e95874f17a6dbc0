import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from mentatlab import home
from mentatlab.app import Settings, SharedLog, bind, build, bundled_agents, read_settings, running
from mentatlab.gateway.server import Tls
from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.storage import Quota
from mentatlab.storage.life import Life


def test_defaults():
    settings = read_settings({})
    assert settings.home == Path.home() / ".mentatlab"
    assert (settings.host, settings.port) == ("127.0.0.1", 7070)
    assert settings.agent_dirs == (settings.home / "agents", bundled_agents())
    assert settings.multimodal
    assert settings.streaming


def test_agents_are_given_none_of_the_servers_secrets() -> None:
    theirs = {"MENTATLAB_MODEL_DIR": "/models", "AWS_PROFILE": "team", "API_KEY": "k"}
    ours = {"S3_SECRET_KEY": "s", "MENTATLAB_KEY": "k", "MENTATLAB_URL_KEYS": f"a:{'x' * 32}"}
    assert read_settings({**theirs, **ours}).environment == theirs


def test_the_environment_and_options_win_over_it(tmp_path: Path):
    environ = {
        "MENTATLAB_HOME": str(tmp_path),
        "MENTATLAB_PORT": "8080",
        "MENTATLAB_HOST": "::1",
        "MENTATLAB_AGENTS": "/a:/b",
        "MENTATLAB_HOSTS": "x.example, y.example",
        "MENTATLAB_RATE": "0",
        "MENTATLAB_MAX_OBJECT": "2GiB",
        "MENTATLAB_QUOTA_BYTES": "1TB",
        "MENTATLAB_QUOTA_COUNT": "1000",
        "MENTATLAB_TRANSPORT": "portable",
        "MENTATLAB_TLS_CERT": "/tls/cert.pem",
        "MENTATLAB_TLS_KEY": "/tls/key.pem",
        "MENTATLAB_LOG": "redis://:pass@host/0",
        "MENTATLAB_REDIS_PREFIX": "mine:",
        "MENTATLAB_REDIS_ALLOW_RELAXED": "yes",
        "MENTATLAB_WEBHOOK_PRIVATE": "true",
        "MENTATLAB_TOKEN_SECRET": "t" * 32,
        "ENABLE_MULTIMODAL": "off",
        "ENABLE_STREAMING": "False",
        "SECRET": "s",
    }
    settings = read_settings(environ)
    assert settings.url == "https://[::1]:8080"
    assert settings.tls == (Path("/tls/cert.pem"), Path("/tls/key.pem"))
    assert settings.transport == "portable"
    assert settings.agent_dirs[:3] == (Path("/a"), Path("/b"), tmp_path / "agents")
    assert settings.hosts == {"x.example", "y.example"}
    assert (settings.rate, settings.multimodal, settings.streaming) == (0, False, False)
    assert settings.max_object == 2 << 30
    assert settings.quota == Quota(bytes=10**12, count=1000)
    assert settings.environment == {
        "SECRET": "s",
        "ENABLE_MULTIMODAL": "off",
        "ENABLE_STREAMING": "False",
    }
    for secret in ("SECRET", "pass", "tttt"):
        assert secret not in repr(settings)
    assert settings.webhook_private
    assert settings.log == SharedLog(url="redis://:pass@host/0", prefix="mine:", allow_relaxed=True)
    assert settings.token_secret == "t" * 32
    told = read_settings(environ, host="localhost", port=0, agent_dirs=(Path("/c"),))
    assert (told.host, told.port, told.agent_dirs[0]) == ("localhost", 0, Path("/c"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MENTATLAB_PORT", "65536"),
        ("MENTATLAB_PORT", "-1"),
        ("MENTATLAB_PORT", "http"),
        ("MENTATLAB_PORT", "²"),
        ("MENTATLAB_RATE", "fast"),
        ("MENTATLAB_MAX_OBJECT", "large"),
        ("MENTATLAB_QUOTA_BYTES", "much"),
        ("MENTATLAB_QUOTA_COUNT", "-1"),
        ("ENABLE_STREAMING", "2"),
        ("MENTATLAB_TRANSPORT", "fast"),
        ("MENTATLAB_TLS_CERT", "/only/one.pem"),
        ("MENTATLAB_TLS_KEY", "/only/one.pem"),
        ("MENTATLAB_LOG", "postgres://x"),
        ("MENTATLAB_TOKEN_SECRET", "too short"),
    ],
)
def test_wrong_settings_are_named(name: str, value: str):
    with pytest.raises(Invalid, match=name) as caught:
        read_settings({name: value})
    assert caught.value.code is Code.BAD_SETTING
    assert caught.value.hint


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:7"), ("::", "http://[::1]:7"), ("a.b", "http://a.b:7")],
)
def test_the_url_is_one_that_can_be_called(host: str, url: str):
    assert Settings(home=Path("/h"), host=host, port=7).url == url


def test_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict) as caught:
            bind(Settings(home=Path("/h"), port=port))
    assert caught.value.code is Code.PORT_IN_USE
    assert str(port) in caught.value.message


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name"])
def test_a_host_that_is_not_here(host: str):
    with pytest.raises(Invalid) as caught:
        bind(Settings(home=Path("/h"), host=host, port=0))
    assert caught.value.code is Code.BAD_SETTING


async def test_running_answers_and_lets_go(tmp_path: Path):
    settings = Settings(home=tmp_path, port=0, agent_dirs=())
    async with running(settings) as app, httpx2.AsyncClient(base_url=app.url) as http:
        assert (await http.get("/healthz")).json()["status"] == "ok"
        assert home.running_server(tmp_path) is not None
        with pytest.raises(Conflict):
            async with running(settings):
                pass
    assert home.running_server(tmp_path) is None
    async with running(settings):
        pass


async def test_an_object_over_the_limit_is_refused(tmp_path: Path):
    settings = Settings(home=tmp_path, port=0, agent_dirs=(), max_object=1000)

    async def unannounced() -> AsyncIterator[bytes]:
        yield bytes(1001)

    async with running(settings) as app, httpx2.AsyncClient(base_url=app.url) as http:
        for body, status in ((bytes(1000), 201), (bytes(1001), 413), (unannounced(), 413)):
            answer = await http.post("/api/v1/storage/upload", content=body)
            assert answer.status_code == status
        assert answer.json()["code"] == "PAYLOAD_TOO_LARGE"
        assert "MENTATLAB_MAX_OBJECT" in answer.json()["hint"]


async def test_errors_of_the_body_leave_as_they_are(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        async with running(Settings(home=tmp_path, port=0, agent_dirs=())):
            raise ZeroDivisionError


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_the_network_needs_keys(tmp_path: Path, host: str):
    settings: dict[str, Any] = {"home": tmp_path, "agent_dirs": ()}
    with pytest.raises(Invalid) as caught:
        async with build(Settings(host=host, **settings)):
            pass
    assert caught.value.code is Code.KEYS_REQUIRED
    async with build(Settings(**settings)) as app:
        await app.services.keys.create(workspace="default", scopes=["read"], now=0)
    async with build(Settings(host=host, **settings)):
        pass


async def test_housekeeping_that_fails_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    failed = asyncio.Event()

    async def fail(self: Life) -> None:
        failed.set()
        raise OSError("the disk is away")

    monkeypatch.setattr(Life, "sweep", fail)
    async with running(Settings(home=tmp_path, port=0, agent_dirs=())) as app:
        await failed.wait()
        async with httpx2.AsyncClient(base_url=app.url) as http:
            assert (await http.get("/healthz")).status_code == 200
    assert "the disk is away" in caplog.text


async def test_a_server_with_a_certificate_answers_https_only(tmp_path: Path):
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    issued = authority.issue_cert("127.0.0.1")
    tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tls.certificate)
    issued.private_key_pem.write_to_path(tls.key)
    settings = Settings(home=tmp_path / "home", port=0, agent_dirs=(), tls=tls)
    async with running(settings) as app, httpx2.AsyncClient(verify=trust) as http:
        assert app.url.startswith("https://127.0.0.1:")
        assert (await http.get(f"{app.url}/healthz")).status_code == 200
        with pytest.raises(httpx2.TransportError):
            await http.get(f"{app.url.replace('https', 'http')}/healthz")
