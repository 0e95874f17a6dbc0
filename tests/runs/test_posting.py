"""POST to a receiver by the address that was checked, under its name."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
import trustme

from mentatlab.protocol.errors import Invalid, Unavailable
from mentatlab.runs.posting import Poster, is_public, resolve

NAME = "receiver.example"


@dataclass
class Receiver:
    """Answers each request with `answer`; b"" closes the connection, None never answers."""

    answer: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    names: list[str | None] = field(default_factory=list[str | None])  # SNI
    asked: list[str] = field(default_factory=list[str])  # of the resolver
    addresses: tuple[str, ...] = ("127.0.0.1",)
    writers: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return list(self.addresses)

    def url(self, scheme: str = "http", path: str = "/hook?a=b") -> str:
        return f"{scheme}://{NAME}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(x[15:]) for x in lines if x.startswith(b"content-length:"))
            self.requests.append((head, await reader.readexactly(length)))
            if self.answer is None:
                await reader.read()  # until the other side gives up
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()

    async def aclose(self) -> None:
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def receiving(
    receiver: Receiver, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[Receiver]:
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield receiver
        finally:
            await receiver.aclose()


@contextlib.asynccontextmanager
async def posting(
    receiver: Receiver, *, private: bool = True, verify: ssl.SSLContext | None = None
) -> AsyncGenerator[Poster]:
    poster = Poster(private=private, verify=verify, resolve=receiver.resolve, timeout_s=20.0)
    try:
        yield poster
    finally:
        await poster.aclose()


async def test_the_checked_address_is_called_under_its_name() -> None:
    async with receiving(Receiver()) as receiver, posting(receiver) as poster:
        assert await poster.post(receiver.url(), b'{"a": 1}', {"X-One": "two"}) == 200
    ((head, body),) = receiver.requests
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert b"host: %s:%d\r\n" % (NAME.encode(), receiver.port) in head.lower()
    assert b"x-one: two\r\n" in head.lower()
    assert (body, receiver.asked) == (b'{"a": 1}', [NAME])


async def test_certificates_are_those_of_the_name() -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    for name, trust, good in ((NAME, trusting, True), ("other", trusting, False), (NAME, None, 0)):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(tls)
        receiver = Receiver()
        tls.sni_callback = lambda _, asked, __, to=receiver: to.names.append(asked)
        async with receiving(receiver, tls), posting(receiver, verify=trust) as poster:
            if good:
                assert await poster.post(receiver.url("https"), b"{}", {}) == 200
            else:
                with pytest.raises(Unavailable, match="WEBHOOK_UNREACHABLE"):
                    await poster.post(receiver.url("https"), b"{}", {})
        assert receiver.names == [NAME]
        assert len(receiver.requests) == bool(good)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
            302,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\nendless", 200),
        (b"HTTP/1.1 410 Gone\r\n\r\n", 410),
    ],
)
async def test_only_the_status_counts(answer: bytes, status: int) -> None:
    async with receiving(Receiver(answer)) as receiver, posting(receiver) as poster:
        assert await poster.post(receiver.url(), b"{}", {}) == status
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-nothing\r\n"])
async def test_who_does_not_speak_http(answer: bytes) -> None:
    async with receiving(Receiver(answer)) as receiver, posting(receiver) as poster:
        with pytest.raises(Unavailable, match=r"WEBHOOK_UNREACHABLE: receiver\.example: ."):
            await poster.post(receiver.url(), b"{}", {})


async def test_who_never_answers() -> None:
    async with receiving(Receiver(None)) as receiver:
        poster = Poster(private=True, resolve=receiver.resolve, timeout_s=0.5)
        with pytest.raises(Unavailable, match="WEBHOOK_UNREACHABLE"):
            await poster.post(receiver.url(), b"{}", {})
        await poster.aclose()


async def test_the_next_address_when_one_does_not_answer() -> None:
    async with receiving(Receiver()) as receiver, posting(receiver) as poster:
        receiver.addresses = ("127.9.9.9", "127.0.0.1")  # nobody listens on the first
        assert await poster.post(receiver.url(), b"{}", {}) == 200
        receiver.addresses = ("127.9.9.9",)
        with pytest.raises(Unavailable, match="WEBHOOK_UNREACHABLE"):
            await poster.post(receiver.url(), b"{}", {})


async def test_nothing_inside_the_network_is_called() -> None:
    async with receiving(Receiver()) as receiver, posting(receiver, private=False) as poster:
        for addresses in (("127.0.0.1",), ("10.0.0.1", "::1")):
            receiver.addresses = addresses
            with pytest.raises(Invalid, match="WEBHOOK_ADDRESS_REFUSED"):
                await poster.post(receiver.url(), b"{}", {})
            with pytest.raises(Invalid, match="WEBHOOK_ADDRESS_REFUSED"):
                await poster.check(receiver.url())
    assert receiver.requests == []


async def test_names_that_lead_nowhere() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("unknown")

    poster = Poster(resolve=nowhere)
    await poster.check("https://later.example")  # it may be known when it is needed
    with pytest.raises(Unavailable, match="its name is not known"):
        await poster.post("https://later.example", b"{}", {})
    with pytest.raises(Invalid, match="WEBHOOK_INVALID"):
        await poster.check("http://[::1")
    await poster.aclose()


@pytest.mark.parametrize("host", ["127.1", "0x7f.0.0.1", "2130706433", "localhost"])
async def test_other_spellings_of_this_machine(host: str) -> None:
    assert not any(map(is_public, await resolve(host, 80)))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("192.0.0.192", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
    ],
)
def test_where_an_address_is(address: str, public: bool) -> None:
    assert is_public(address) is public
