"""A workspace's secrets, schedules, webhooks and subscriptions. A part of `AsyncClient`."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

Answer = dict[str, Any]


class Controls:
    """Answers are the JSON of the API as dicts."""

    async def _call(self, method: str, path: str, **more: Any) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------ secrets

    async def secrets(self) -> list[Answer]:
        """Names and times; never the values."""
        return (await self._call("GET", "/api/v1/secrets"))["secrets"]

    async def set_secret(self, name: str, value: str) -> None:
        """Needs the scope `admin`."""
        await self._call("PUT", f"/api/v1/secrets/{_part(name)}", json={"value": value})

    async def remove_secret(self, name: str) -> None:
        await self._call("DELETE", f"/api/v1/secrets/{_part(name)}")

    # ------------------------------------------------------------------ schedules

    async def schedules(self) -> list[Answer]:
        return (await self._call("GET", "/api/v1/schedules"))["schedules"]

    async def schedule(self, schedule_id: str) -> Answer:
        """With its last ticks."""
        return await self._call("GET", f"/api/v1/schedules/{_part(schedule_id)}")

    async def add_schedule(
        self,
        flow_id: str,
        cron: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        timezone: str = "UTC",
        overlap: str = "skip",
        paused: bool = False,
    ) -> Answer:
        """`overlap`: what a tick does while an earlier run goes on: `skip`, `queue` or `allow`."""
        body = {
            "flow_id": flow_id,
            "cron": cron,
            "inputs": dict(inputs or {}),
            "timezone": timezone,
            "overlap": overlap,
            "paused": paused,
        }
        return await self._call("POST", "/api/v1/schedules", json=body)

    async def pause_schedule(self, schedule_id: str, *, paused: bool = True) -> Answer:
        path = f"/api/v1/schedules/{_part(schedule_id)}"
        return await self._call("PATCH", path, json={"paused": paused})

    async def remove_schedule(self, schedule_id: str) -> None:
        await self._call("DELETE", f"/api/v1/schedules/{_part(schedule_id)}")

    # ------------------------------------------------------------------ webhooks

    async def webhooks(self) -> list[Answer]:
        """Addresses that start runs when they are called."""
        return (await self._call("GET", "/api/v1/webhooks"))["webhooks"]

    async def add_webhook(
        self, flow_id: str, *, input: str = "", secret: str | None = None
    ) -> Answer:
        """The answer's `secret` is shown this once. `input`: the one that gets the call's body;
        without it the body holds all inputs."""
        body = {"flow_id": flow_id, "input": input, "secret": secret}
        return await self._call("POST", "/api/v1/webhooks", json=body)

    async def remove_webhook(self, webhook_id: str) -> None:
        await self._call("DELETE", f"/api/v1/webhooks/{_part(webhook_id)}")

    # ------------------------------------------------------------------ who is told of runs' ends

    async def subscriptions(self) -> list[Answer]:
        """Addresses that are told of runs' ends."""
        return (await self._call("GET", "/api/v1/subscriptions"))["subscriptions"]

    async def subscribe(
        self,
        url: str,
        *,
        events: Sequence[str] = ("run_finished",),
        flow_id: str = "",
        secret: str | None = None,
    ) -> Answer:
        """The answer's `secret`, which signs every call, is shown this once."""
        body = {"url": url, "events": list(events), "flow_id": flow_id, "secret": secret}
        return await self._call("POST", "/api/v1/subscriptions", json=body)

    async def unsubscribe(self, subscription_id: str) -> None:
        await self._call("DELETE", f"/api/v1/subscriptions/{_part(subscription_id)}")

    async def deliveries(self, **wanted: str | int) -> Answer:
        """A page of `deliveries`, and `next`. `subscription_id`, `run_id`, `state` (waiting,
        delivered, failed), `limit`, `before`."""
        return await self._call("GET", "/api/v1/deliveries", params=wanted)

    async def redeliver(self, delivery_id: str) -> Answer:
        """Send it again, now."""
        return await self._call("POST", f"/api/v1/deliveries/{_part(delivery_id)}/redeliver")


def _part(text: str) -> str:
    return quote(text, safe=":")
