"""The secrets of a workspace. A part of `AsyncClient`."""

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


def _part(text: str) -> str:
    return quote(text, safe=":")
