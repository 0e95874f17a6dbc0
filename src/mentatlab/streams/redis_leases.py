"""`Leases` on Redis: when they run out in a sorted set, whose they are in a hash."""

from collections.abc import Sequence

import msgspec

from mentatlab.streams.leases import Lease
from mentatlab.streams.redis_server import Command, RedisServer

_decode = msgspec.json.Decoder(Lease).decode


class RedisLeases:
    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._until, self._by_id = f"{server.prefix}leases:until", f"{server.prefix}leases"

    async def renew(self, leases: Sequence[Lease]) -> None:
        commands: list[Command] = []
        for lease in leases:
            commands += [
                ("HSET", self._by_id, lease.stream_id, msgspec.json.encode(lease)),
                ("ZADD", self._until, lease.until, lease.stream_id),
            ]
        await self._server.commands(*commands)

    async def release(self, stream_id: str) -> None:
        await self._server.commands(
            ("HDEL", self._by_id, stream_id), ("ZREM", self._until, stream_id)
        )

    async def get(self, stream_id: str) -> Lease | None:
        found: bytes | None = await self._server.ask("HGET", self._by_id, stream_id)
        return None if found is None else _decode(found)

    async def run_out(self, now: float) -> list[Lease]:
        ids: list[bytes] = await self._server.ask("ZRANGEBYSCORE", self._until, "-inf", now)
        if not ids:
            return []
        found: list[bytes | None] = await self._server.ask("HMGET", self._by_id, *ids)
        return [_decode(lease) for lease in found if lease is not None]
