"""For whom an upload is."""

from typing import NamedTuple

from fastapi import Request

from mentatlab.gateway.identity import authorise, caller


class Uploader(NamedTuple):
    """`owner` needs the blob; "" = it is kept for its own sake, until it is deleted."""

    workspace: str
    owner: str = ""


def uploader(request: Request) -> Uploader:
    """Who may publish; or an attempt, whose run owns the blob."""
    who = caller(request)
    if who.claims is not None and "put" in who.claims.capabilities:
        return Uploader(who.workspace, f"run:{who.claims.subject.partition('/')[0]}")
    authorise(who, "publish")
    return Uploader(who.workspace)
