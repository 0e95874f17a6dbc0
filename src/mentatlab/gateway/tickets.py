"""Tickets: single use, for those who can send no header (EventSource, a browser's WebSocket)."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from mentatlab.protocol.errors import Code, Unauthenticated
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.tokens import (
    TICKET_LIFETIME_S,
    Claims,
    Ticket,
    mint_ticket,
    verify_ticket,
)


class Once(Protocol):
    """Who comes first, over all gateways that share it."""

    async def claim(self, name: str, *, ttl_s: float) -> bool:
        """True for exactly one call with that name within `ttl_s` seconds. Atomic."""
        ...


class OnceHere:
    """Of one process. Holds names for their `ttl_s`, no longer."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[str, float] = {}

    async def claim(self, name: str, *, ttl_s: float) -> bool:
        now = self._now()
        if self._until.get(name, now) > now:
            return False
        self._forget(now)
        self._until[name] = now + ttl_s
        return True

    def _forget(self, now: float) -> None:
        """Names come in about the order in which they end."""
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now:
                return
            del self._until[oldest]


class Issued(NamedTuple):
    ticket: str
    expires: int  # Unix seconds


class Tickets:
    def __init__(self, secret: bytes, once: Once, now: Callable[[], float]) -> None:
        self._secret, self._once, self._now = secret, once, now

    def issue(self, claims: Claims) -> Issued:
        """A ticket whose use gives `claims`."""
        expires = int(self._now()) + TICKET_LIFETIME_S
        ticket = Ticket(id=new_id("tk"), claims=claims, expires=expires)
        return Issued(mint_ticket(ticket, self._secret), expires)

    def look(self, text: str) -> Ticket:
        """A ticket of ours that is not over; it is not used by this."""
        return verify_ticket(text, self._secret, now=self._now())

    async def redeem(self, text: str) -> Claims:
        """Its claims, once; `Unauthenticated(TOKEN_INVALID)` after that."""
        ticket = self.look(text)
        if await self._once.claim(ticket.id, ttl_s=TICKET_LIFETIME_S):
            return ticket.claims
        raise Unauthenticated(
            Code.TOKEN_INVALID,
            "the ticket was used before",
            hint="a ticket opens one connection; ask for a new one for each",
        )
