"""POST to addresses that users of the server have named, and to nothing inside its network.

A name is resolved once; what it leads to is checked, and that very address is connected to, under
the name (Host, SNI, certificate). So a name that leads elsewhere a moment later changes nothing.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property

import httpx2

from mentatlab.protocol.errors import Code, Invalid, Unavailable

TIMEOUT_S = 15.0
"""From looking up the name to the answer's status."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CLOUD = frozenset({ipaddress.ip_address("168.63.129.16")})
"""A public address that is the host of a virtual machine (Azure); those of other clouds are
link-local or private."""
_SPECIAL = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "64:ff9b:1::/48", "2001::/23")]
"""Not global by IANA's registries of special addresses, but by some releases of Python."""
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
"""No connection is used again: two names at one address are two receivers."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) → IP addresses, the preferred first; `OSError`"""


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether it is somewhere in the internet: neither private, shared, loopback, link-local,
    multicast, reserved, nor an IPv6 form of such an IPv4 address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return all(_is_global(one) for one in _meant(found))


def _is_global(address: Address) -> bool:
    special = address in _CLOUD or any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not special


def _meant(address: Address) -> list[Address]:
    """It, and the IPv4 address that it carries; of one that is only a form of that, that alone."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    carried = address.sixtofour or (address.teredo and address.teredo[1])
    return [address, carried] if carried else [address]


class Poster:
    """`private`: inner addresses are allowed too. `verify`: which certificates are trusted."""

    def __init__(
        self,
        *,
        private: bool = False,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._private, self._verify = private, verify
        self._resolve, self._timeout_s = resolve, timeout_s

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        """Made when it is needed: reading the trusted certificates takes 60 ms."""
        return httpx2.AsyncClient(
            verify=self._verify or True,
            timeout=httpx2.Timeout(self._timeout_s),
            limits=_LIMITS,
            follow_redirects=False,
            trust_env=False,  # a proxy would look the name up again
        )

    async def aclose(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def check(self, url: str) -> None:
        """`Invalid(WEBHOOK_ADDRESS_REFUSED)`; a name that is not known now may be later."""
        try:
            await self._addresses(_parsed(url))
        except Unavailable:
            return

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The answer's status; redirects are not followed, and bodies not read.

        `Invalid(WEBHOOK_ADDRESS_REFUSED)`, `Unavailable(WEBHOOK_UNREACHABLE)`
        """
        parsed = _parsed(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(parsed, body, headers)
        except TimeoutError as error:
            raise _unreachable(parsed, f"no answer within {self._timeout_s:g} s") from error

    async def _post(self, url: httpx2.URL, body: bytes, headers: Mapping[str, str]) -> int:
        failure: httpx2.ConnectError | None = None
        for address in await self._addresses(url):
            try:
                return await self._post_to(address, url, body, headers)
            except httpx2.ConnectError as error:
                failure = error
            except httpx2.TransportError as error:
                raise _unreachable(url, str(error) or type(error).__name__) from error
        raise _unreachable(url, str(failure)) from failure

    async def _post_to(
        self, address: str, url: httpx2.URL, body: bytes, headers: Mapping[str, str]
    ) -> int:
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={**headers, "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        answer = await self._client.send(request, stream=True)
        await answer.aclose()
        return answer.status_code

    async def _addresses(self, url: httpx2.URL) -> list[str]:
        """Those of them that may be used."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await self._resolve(url.raw_host.decode("ascii"), port)
        except (OSError, UnicodeError) as error:
            raise _unreachable(url, f"its name is not known: {error}") from error
        allowed = [address for address in found if self._private or is_public(address)]
        if not allowed:
            raise Invalid(
                Code.WEBHOOK_ADDRESS_REFUSED,
                f"{url.host} is an address inside the server's network",
                hint="name one in the internet, or allow it: MENTATLAB_WEBHOOK_PRIVATE=true",
            )
        return allowed


def _parsed(url: str) -> httpx2.URL:
    try:
        return httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Invalid(
            Code.WEBHOOK_INVALID,
            f"{url[:100]!r} is no address: {error}",
            hint="give an address like https://example.org/hooks/runs",
        ) from error


def _unreachable(url: httpx2.URL, why: str) -> Unavailable:
    return Unavailable(
        Code.WEBHOOK_UNREACHABLE,
        f"{url.host}: {why}",
        hint="is the receiver running, and reachable from the server?",
    )
