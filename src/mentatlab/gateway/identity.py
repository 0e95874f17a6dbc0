"""Who is calling, and what they may do.

`admission` puts a `Caller` on every request and WebSocket; routes ask for it with `Depends(caller)`
and guard themselves with `Depends(requires("run"))`. A capability token (a stream's, a run's, an
attempt's) is a caller without scopes that carries `claims`, a signed address one with its `grant`.
"""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import msgspec
from starlette.requests import HTTPConnection

from mentatlab.gateway.signed_urls import Grant
from mentatlab.protocol.errors import Code, Forbidden, Unauthenticated
from mentatlab.protocol.tokens import Claims

Scope = Literal["read", "run", "publish", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
USER_SCOPES: frozenset[Scope] = ALL_SCOPES - {"admin"}
Role = Literal["multimodal_producer", "multimodal_consumer"]
ROLES: dict[Role, frozenset[Scope]] = {
    "multimodal_producer": frozenset({"read", "run", "publish"}),
    "multimodal_consumer": frozenset({"read"}),
}
"""Names for scope sets that a key may be given instead of scopes."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """`name` tells callers apart in logs and rate limits; it is no secret. "" = nobody."""

    workspace: str = "default"
    scopes: frozenset[Scope] = frozenset()
    name: str = ""
    claims: Claims | None = None
    grant: Grant | None = None

    @property
    def exempt(self) -> bool:
        """From rates: the user at the machine, and nobody (who may do nothing)."""
        return self.name in ("", LOOPBACK_USER.name)


ANONYMOUS = Caller()
LOOPBACK_USER = Caller(scopes=USER_SCOPES, name="loopback")


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes among stored names; those of another version are left out."""
    return frozenset(scope for scope in ALL_SCOPES if scope in set(names))


def caller(connection: HTTPConnection) -> Caller:
    """The caller of this request or WebSocket (a FastAPI dependency)."""
    return connection.state.caller


def requires(scope: Scope) -> Callable[[HTTPConnection], Caller]:
    """A FastAPI dependency: the caller, who must have the scope (`admin` has all)."""

    def check(connection: HTTPConnection) -> Caller:
        who = caller(connection)
        authorise(who, scope)
        return who

    return check


def authorise(who: Caller, scope: Scope) -> None:
    """`Unauthenticated` when nobody is known to call, `Forbidden` when somebody may not."""
    if scope in who.scopes or "admin" in who.scopes:
        return
    if not who.name:
        raise Unauthenticated(
            Code.UNAUTHENTICATED,
            "this server asks for a key",
            hint="send `Authorization: Bearer <key>` (the command line: `--key` or MENTATLAB_KEY); "
            "`mentatlab keys add` makes one",
        )
    raise Forbidden(
        Code.FORBIDDEN,
        f"this needs the scope {scope!r}",
        hint="use a key with that scope (`mentatlab keys add --scope`); "
        "the server's own key is in its home folder",
    )
