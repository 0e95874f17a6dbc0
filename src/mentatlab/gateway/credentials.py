"""From a credential to its caller: API keys, the home key and capability tokens."""

import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from mentatlab.gateway.head import Head
from mentatlab.gateway.identity import ALL_SCOPES, Caller
from mentatlab.protocol import tokens
from mentatlab.protocol.errors import Code, Unauthenticated

KeyLookup = Callable[[str], Awaitable[Caller | None]]
"""A presented key → its caller, or None when it is not (or no longer) known."""

RECHECK_S = 1.0
SUBPROTOCOL = "bearer."
_MOST = 10_000


class Credentials:
    """Whom a credential belongs to. Keys are looked up each time; `still` may be 1 s behind."""

    def __init__(self, home_key: str, secret: bytes, lookup: KeyLookup) -> None:
        self._home_key, self._secret, self._lookup = home_key.encode(), secret, lookup
        self._seen: OrderedDict[str, float] = OrderedDict()

    def at_once(self, credential: str) -> Caller | None:
        """The caller of a token or of the home key; None for what must be looked up.

        `Unauthenticated(TOKEN_INVALID)`
        """
        if credential.startswith("v1."):
            claims = tokens.verify(credential, self._secret, now=time.time())
            name = f"token:{claims.subject}"
            return Caller(workspace=claims.workspace, name=name, claims=claims)
        if hmac.compare_digest(credential.encode(), self._home_key):
            return Caller(scopes=ALL_SCOPES, name="home")
        return None

    async def caller(self, credential: str) -> Caller:
        """`Unauthenticated`"""
        if (known := self.at_once(credential)) is not None:
            return known
        found = await self._lookup(credential)
        if found is None:
            self._seen.pop(credential, None)
            raise bad_credential("the key is not known here, or was revoked")
        self._remember(credential)
        return found

    async def still(self, credential: str) -> None:
        """`Unauthenticated` when it has ended, or was revoked more than a second ago."""
        seen = self._seen.get(credential)
        if seen is None or time.monotonic() - seen > RECHECK_S:
            await self.caller(credential)

    def _remember(self, credential: str) -> None:
        self._seen[credential] = time.monotonic()
        self._seen.move_to_end(credential)
        if len(self._seen) > _MOST:
            self._seen.popitem(last=False)


def credential_of(head: Head) -> str | None:
    """What the request carries: `Authorization: Bearer …`, or of a WebSocket the subprotocol
    `bearer.<credential>`; None when it carries nothing. `Unauthenticated`
    """
    header = head.header(b"authorization")
    if header is not None:
        kind, _, credential = header.partition(" ")
        if kind.lower() != "bearer" or not credential.strip():
            raise bad_credential("the Authorization header is not `Bearer <key>`")
        return credential.strip()
    if head.websocket:
        for name in head.listed(b"sec-websocket-protocol"):
            if name.startswith(SUBPROTOCOL):
                return name.removeprefix(SUBPROTOCOL)
    return None


def bad_credential(message: str) -> Unauthenticated:
    return Unauthenticated(Code.UNAUTHENTICATED, message, hint="`mentatlab keys add` makes a key")
