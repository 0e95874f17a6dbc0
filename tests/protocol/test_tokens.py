import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Unauthenticated
from mentatlab.protocol.tokens import Claims, Ticket, mint, mint_ticket, verify, verify_ticket

SECRET = b"s" * 32
CLAIMS = Claims(subject="st_1", capabilities=("sub", "pub"), workspace="default", expires=100)
TOKEN = mint(CLAIMS, SECRET)

claims = st.builds(
    Claims,
    subject=st.text(),
    capabilities=st.lists(st.sampled_from(["sub", "pub", "cancel", "put"])).map(tuple),
    workspace=st.text(),
    expires=st.integers(1, 1 << 60),
)


def refused(token: str, *, secret: bytes = SECRET, now: float = 0) -> str:
    with pytest.raises(Unauthenticated) as error:
        verify(token, secret, now=now)
    assert error.value.code == Code.TOKEN_INVALID
    assert error.value.hint
    return error.value.message


@given(claims, st.binary(min_size=1))
def test_claims_come_back(claims: Claims, secret: bytes) -> None:
    assert verify(mint(claims, secret), secret, now=claims.expires - 1) == claims


def test_a_token_ends() -> None:
    assert verify(TOKEN, SECRET, now=99.9) == CLAIMS
    assert "expired" in refused(TOKEN, now=100)


def test_another_secret_does_not_verify() -> None:
    assert "not valid" in refused(TOKEN, secret=b"t" * 32)


@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="ascii"))
def test_a_changed_character_is_refused(index: int, character: str) -> None:
    changed = TOKEN[:index] + character + TOKEN[index + 1 :]
    if changed != TOKEN:
        refused(changed)


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    refused(text)


def test_a_signature_over_something_else_than_claims_is_refused() -> None:
    body = base64.urlsafe_b64encode(b"[]").rstrip(b"=").decode()
    digest = hmac.digest(SECRET, f"v1.{body}".encode(), hashlib.sha256)
    signature = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    refused(f"v1.{body}.{signature}")
    refused(f"v2.{body}.{signature}")
    refused(f"v1.{body}.{signature}=")


TICKET = Ticket(id="tk_1", claims=CLAIMS, expires=50)


def test_a_ticket_comes_back_until_it_or_what_it_gives_ends() -> None:
    text = mint_ticket(TICKET, SECRET)
    assert verify_ticket(text, SECRET, now=49.9) == TICKET
    late = mint_ticket(Ticket(id="tk_2", claims=CLAIMS, expires=200), SECRET)
    for found, now in ((text, 50), (late, 100)):
        with pytest.raises(Unauthenticated, match="the ticket has expired"):
            verify_ticket(found, SECRET, now=now)


def test_neither_is_taken_for_the_other() -> None:
    text = mint_ticket(TICKET, SECRET)
    refused(text)
    refused("v1" + text.removeprefix("t1"))
    for other in (TOKEN, "t1" + TOKEN.removeprefix("v1")):
        with pytest.raises(Unauthenticated, match="the ticket is not valid"):
            verify_ticket(other, SECRET, now=0)
