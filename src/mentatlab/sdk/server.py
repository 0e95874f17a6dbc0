"""One server over HTTP, as the client's parts share it (extra `client`). Imports httpx2 late."""

import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

import msgspec

from mentatlab.protocol.errors import Code, Unavailable
from mentatlab.sdk.answers import error_of

if TYPE_CHECKING:
    import httpx2

_TIMEOUT_S = 30.0
_CONNECT_S = 5.0
"""For a store or a CDN: when nobody is there, there is another way."""


class CutOff(Unavailable):
    """Somebody was there, and the connection broke: nobody knows what has arrived."""


class Server:
    def __init__(
        self, base_url: str, key: str | None, transport: "httpx2.AsyncBaseTransport | None"
    ) -> None:
        import httpx2  # 100 ms that agents never need

        self._failures = httpx2.TransportError
        self._nobody = (httpx2.ConnectError, httpx2.ConnectTimeout)
        self.event_source = httpx2.EventSource
        self.base_url, self.key = base_url.rstrip("/"), key
        self.http = httpx2.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_TIMEOUT_S),
            transport=transport,
        )
        # another host never sees the key
        self._others = httpx2.AsyncClient(timeout=httpx2.Timeout(_TIMEOUT_S, connect=_CONNECT_S))

    async def aclose(self) -> None:
        await self.http.aclose()
        await self._others.aclose()

    async def call(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of the answer; error answers are raised as the `MentatError`s they were."""
        with self.reaching():
            answer = await self.http.request(method, path, **more)
        await self.check(answer)
        return msgspec.json.decode(answer.content) if answer.content else None

    @contextlib.asynccontextmanager
    async def ask(self, method: str, url: str, **more: Any) -> "AsyncGenerator[httpx2.Response]":
        """An answer of any status, its body unread. `url`: a path here, or another host's."""
        http = self.http if self.is_here(url) else self._others
        with self.reaching(url):
            async with http.stream(method, url, **more) as answer:
                yield answer

    def is_here(self, url: str) -> bool:
        return url.startswith(("/", f"{self.base_url}/"))

    @contextlib.contextmanager
    def reaching(self, url: str = "/") -> Generator[None]:
        try:
            yield
        except self._failures as error:
            where = self.base_url if self.is_here(url) else url.partition("?")[0]
            kind = Unavailable if isinstance(error, self._nobody) else CutOff
            raise kind(
                Code.SERVER_UNREACHABLE,
                f"{where} does not answer: {error or type(error).__name__}",
                hint="is `mentatlab up` running there?",
            ) from error

    @staticmethod
    async def check(answer: "httpx2.Response") -> None:
        if answer.status_code >= 400:
            body = await answer.aread()
            raise error_of(answer.status_code, body, retry_after=answer.headers.get("Retry-After"))
