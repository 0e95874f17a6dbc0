"""Signed addresses: the pure part, then the whole app."""

import time
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import client_of

from mentatlab.app import App, read_settings
from mentatlab.gateway.signed_urls import (
    GRID_S,
    NO_KEYS,
    Grant,
    UrlKeys,
    UrlSigner,
    expiry,
    own_keys,
    parse_keys,
    signed_ref,
)
from mentatlab.protocol.errors import Code, Forbidden, Gone, Invalid, MentatError

REF = "blob_" + "0" * 26
OLD, NEW = "old:" + "o" * 32, "new:" + "n" * 32
KEYS = parse_keys(f"{NEW}, {OLD}")
GRANT = Grant("GET", REF, "default", 1800)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def asked(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def code_of(keys: UrlKeys, method: str, parameters: dict[str, str], now: float = 0) -> Code:
    with pytest.raises(MentatError) as raised:
        keys.verify(method, REF, parameters, now=now)
    return raised.value.code


def test_what_is_signed_is_verified() -> None:
    url = KEYS.sign(GRANT)
    assert urlsplit(url).path == f"/api/v1/storage/{REF}"
    assert list(asked(url)) == ["e", "k", "w", "s"]
    assert KEYS.verify("GET", REF, asked(url), now=1799) == (GRANT, "new")
    assert KEYS.verify("GET", REF, asked(url) | {"preview": "thumb"}, now=0).grant == GRANT


def test_equal_grants_are_equal_addresses() -> None:
    assert KEYS.sign(GRANT) == KEYS.sign(GRANT)
    assert [expiry(now, 3600) for now in (0.1, 450, 900)] == [4500, 4500, 4500]
    assert expiry(900.5, 3600) == 5400


@given(now=st.floats(0, 4e9), lifetime=st.floats(0.001, 1e6))
def test_an_expiry_is_on_the_grid_and_never_early(now: float, lifetime: float) -> None:
    found = expiry(now, lifetime)
    assert found % GRID_S == 0
    assert 0 <= found - (now + lifetime) <= GRID_S


def test_get_covers_head_and_not_the_other_way() -> None:
    assert KEYS.verify("HEAD", REF, asked(KEYS.sign(GRANT)), now=0).grant.method == "GET"
    head = asked(KEYS.sign(GRANT._replace(method="HEAD")))
    assert KEYS.verify("HEAD", REF, head, now=0).grant.method == "HEAD"
    assert code_of(KEYS, "GET", head) == Code.SIGNATURE_INVALID
    assert code_of(KEYS, "DELETE", asked(KEYS.sign(GRANT))) == Code.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"e": "2700"},
        {"e": "١٨٠٠"},
        {"e": "9" * 99},
        {"k": "old"},
        {"k": "none"},
        {"k": ""},
        {"d": "attachment"},
        {"d": "\n"},
        {"w": "other"},
        {"w": ""},
        {"s": ""},
        {"s": "A" * 43},
        {"s": "é"},
    ],
)
def test_what_was_changed_is_refused(change: dict[str, str]) -> None:
    assert code_of(KEYS, "GET", asked(KEYS.sign(GRANT)) | change) == Code.SIGNATURE_INVALID


def test_another_blob_is_refused() -> None:
    with pytest.raises(Forbidden):
        KEYS.verify("GET", REF[:-1] + "1", asked(KEYS.sign(GRANT)), now=0)


def test_its_end() -> None:
    assert code_of(KEYS, "GET", asked(KEYS.sign(GRANT)), now=1800) == Code.SIGNATURE_EXPIRED
    with pytest.raises(Gone):
        KEYS.verify("GET", REF, asked(KEYS.sign(GRANT)), now=1e10)


def test_keys_rotate() -> None:
    before = asked(parse_keys(OLD).sign(GRANT))
    assert KEYS.verify("GET", REF, before, now=0) == (GRANT, "old")
    assert asked(KEYS.sign(GRANT))["k"] == "new"
    assert code_of(parse_keys(NEW), "GET", before) == Code.SIGNATURE_INVALID
    assert code_of(NO_KEYS, "GET", before) == Code.SIGNATURE_INVALID


@pytest.mark.parametrize("text", [",", "a", "a:short", f"{NEW},{NEW}", "ä:" + "x" * 32, f"{NEW},"])
def test_keys_that_are_no_keys(text: str) -> None:
    with pytest.raises(Invalid) as raised:
        read_settings({"MENTATLAB_URL_KEYS": text})
    assert raised.value.code == Code.BAD_SETTING
    assert "short" not in str(raised.value)


def test_what_is_a_signed_address() -> None:
    path = f"/api/v1/storage/{REF}"
    assert signed_ref(path, {"s": ""}) == REF
    assert signed_ref(path, {}) is None
    assert signed_ref(path + "/sign", {"s": ""}) is None
    assert signed_ref("/api/v1/storage", {"s": ""}) is None
    assert signed_ref(REF, {"s": ""}) is None


def test_a_signer_gives_whole_addresses() -> None:
    url = UrlSigner(KEYS, "https://lab.example/", lambda: 100.0).sign("team", REF, 60)
    assert url == "https://lab.example" + KEYS.sign(Grant("GET", REF, "team", GRID_S))


def test_every_home_has_keys_of_its_own() -> None:
    assert own_keys("a").sign(GRANT) == own_keys("a").sign(GRANT) != own_keys("b").sign(GRANT)


# --- through the app


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    told = [time.time()]
    monkeypatch.setattr(time, "time", lambda: told[0])
    return told


async def stored(http: httpx2.AsyncClient) -> str:
    answer = await http.post("/api/v1/storage/upload?filename=a.png", content=PNG)
    return f"/api/v1/storage/{answer.json()['ref']}"


async def sign(http: httpx2.AsyncClient, path: str, **body: object) -> str:
    answer = await http.post(f"{path}/sign", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["expires_at"] % GRID_S == 0
    return answer.json()["url"]


async def test_it_needs_no_other_credential(http: httpx2.AsyncClient, app: App) -> None:
    path = await stored(http)
    url = await sign(http, path)
    async with client_of(app, "ml_nobody") as stranger:
        assert (await stranger.get(path)).status_code == 401
        answer = await stranger.get(url, headers={"Range": "bytes=0-7"})
        assert (answer.status_code, answer.content) == (206, PNG[:8])
        assert (await stranger.head(url)).status_code == 200
        assert (await stranger.delete(url)).status_code == 403
        assert (await stranger.post(url.replace("?", "/sign?"))).status_code == 401


async def test_a_cache_may_keep_it_until_it_ends(
    http: httpx2.AsyncClient, now: list[float]
) -> None:
    path = await stored(http)
    url = await sign(http, path, expires_s=60)
    left = int(int(asked(url)["e"]) - now[0])
    assert (await http.get(url)).headers["cache-control"] == f"public, max-age={left}, immutable"
    assert (await http.get(path)).headers["cache-control"].startswith("private, ")
    now[0] += 60 + GRID_S
    answer = await http.get(url)
    assert (answer.status_code, answer.json()["code"]) == (410, "SIGNATURE_EXPIRED")


async def test_how_it_is_taken(http: httpx2.AsyncClient) -> None:
    path = await stored(http)
    for wish, kind in ((None, "inline"), ("inline", "inline"), ("attachment", "attachment")):
        answer = await http.get(await sign(http, path, disposition=wish))
        assert answer.headers["content-disposition"] == f'{kind}; filename="a.png"'
    page = await http.post("/api/v1/storage/upload", content=b"<html>")
    url = await sign(http, f"/api/v1/storage/{page.json()['ref']}", disposition="inline")
    assert (await http.get(url)).headers["content-disposition"] == "attachment"


async def test_the_address_decides_whatever_else_is_sent(admin: httpx2.AsyncClient) -> None:
    url = await sign(admin, await stored(admin))
    broken = await admin.get(url.replace("w=default", "w=other"))
    assert (broken.status_code, broken.json()["code"]) == (403, "SIGNATURE_INVALID")


async def test_what_can_be_signed(http: httpx2.AsyncClient, app: App) -> None:
    path = await stored(http)
    assert (await http.post(f"{path}/sign")).status_code == 200
    for body in ({"expires_s": 0}, {"expires_s": 8 * 86_400}, {"method": "DELETE"}):
        assert (await http.post(f"{path}/sign", json=body)).status_code == 422
    unknown = await http.post(f"/api/v1/storage/{REF}/sign")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "REFERENCE_NOT_FOUND")
    async with client_of(app, "ml_nobody") as stranger:
        assert (await stranger.post(f"{path}/sign")).status_code == 401


async def test_it_ends_with_the_blob(http: httpx2.AsyncClient) -> None:
    path = await stored(http)
    url = await sign(http, path)
    assert (await http.delete(path)).status_code == 204
    assert (await http.get(url)).json()["code"] == "REFERENCE_NOT_FOUND"
