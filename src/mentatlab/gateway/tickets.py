"""Tickets: single use, for those who can send no header (EventSource, a browser's WebSocket)."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from mentatlab.protocol.errors import Code, Unauthenticated
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.tokens import (
    TICKET_LIFETIME_S,
    Claims,
    Ticket,
    mint_ticket,
    verify_ticket,
)

Claim = Callable[[str, float], Awaitable[bool]]
"""Take a name for that many seconds: True for the first who asks, over all gateways that share the
log (`hub.claim`)."""


class Issued(NamedTuple):
    ticket: str
    expires: int  # Unix seconds


class Tickets:
    def __init__(self, secret: bytes, claim: Claim, now: Callable[[], float]) -> None:
        self._secret, self._claim, self._now = secret, claim, now

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
        if await self._claim(ticket.id, TICKET_LIFETIME_S):
            return ticket.claims
        raise Unauthenticated(
            Code.TOKEN_INVALID,
            "the ticket was used before",
            hint="a ticket opens one connection; ask for a new one for each",
        )
