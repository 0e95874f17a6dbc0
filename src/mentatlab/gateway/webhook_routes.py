"""`/api/v1/webhooks`: addresses that start runs; `/api/v1/hooks/{id}`: where they are called."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, Field

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.limits import Buckets
from mentatlab.gateway.models import Body
from mentatlab.protocol.errors import RateLimited
from mentatlab.runs.signatures import HEADER
from mentatlab.runs.triggers import Triggers
from mentatlab.runs.webhooks import Webhook, WebhookStore, inputs_of

Reader = Annotated[Caller, Depends(requires("read"))]
Author = Annotated[Caller, Depends(requires("run"))]
CALLS_PER_S = 50.0
"""Of one webhook: its caller has no key whose rate would count."""


class WebhookBody(Body):
    """`input`: the one that gets a call's body; without it the body holds all inputs by name."""

    flow_id: str
    input: str = Field(default="", max_length=300)
    secret: str | None = Field(default=None, min_length=16, max_length=200)


class WebhookAnswer(BaseModel):
    id: str
    flow_id: str
    input: str
    url: str
    created_at: float


class NewWebhookAnswer(WebhookAnswer):
    """`secret` is told here and never again."""

    secret: str


class WebhooksAnswer(BaseModel):
    webhooks: list[WebhookAnswer]


class CalledAnswer(BaseModel):
    run_id: str


def webhooks_router(webhooks: WebhookStore, triggers: Triggers, *, url: str) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["webhooks"])
    rate = Buckets(CALLS_PER_S, 2 * CALLS_PER_S)

    def fields(hook: Webhook) -> dict[str, object]:
        return {**msgspec.to_builtins(hook), "url": f"{url}/api/v1/hooks/{hook.id}"}

    @router.post("/webhooks", status_code=201, summary="An address that starts a stored flow")
    async def add(body: WebhookBody, who: Author) -> NewWebhookAnswer:
        """Its input must be one of the flow as it is now; calls run the flow as it is then."""
        digest = await triggers.check_webhook(body.flow_id, body.input, workspace=who.workspace)
        hook, secret = await webhooks.create(
            workspace=who.workspace,
            flow_id=body.flow_id,
            input=body.input,
            secret=body.secret,
            now=time.time(),
            digest=digest,
        )
        return NewWebhookAnswer.model_validate({**fields(hook), "secret": secret})

    @router.get("/webhooks", summary="The workspace's webhooks")
    async def list_webhooks(who: Reader) -> WebhooksAnswer:
        found = await webhooks.list(workspace=who.workspace)
        return WebhooksAnswer(webhooks=[WebhookAnswer.model_validate(fields(h)) for h in found])

    @router.delete("/webhooks/{hook_id}", status_code=204, summary="End a webhook")
    async def delete(hook_id: str, who: Author) -> None:
        await webhooks.delete(hook_id, workspace=who.workspace)

    @router.post("/hooks/{hook_id}", status_code=202, summary="Call a webhook; needs no key")
    async def call(
        hook_id: str,
        request: Request,
        signature: Annotated[str, Header(alias=HEADER, max_length=200)] = "",
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> CalledAnswer:
        """The body is JSON, signed as the header `X-Mentat-Signature` says: `t=<unix seconds>,
        v1=<hex HMAC-SHA256 of "t.body">`, at most five minutes old."""
        if wait := rate.take(hook_id, time.monotonic()):
            raise RateLimited(wait)
        body = await request.body()
        hook = await webhooks.accept(hook_id, body, signature, now=time.time())
        key = idempotency_key and f"hook/{hook.id}/{idempotency_key}"
        run_id = await triggers.call(hook, inputs_of(hook, body), key)
        return CalledAnswer(run_id=run_id)

    return router
