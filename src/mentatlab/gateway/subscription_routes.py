"""`/api/v1/subscriptions`: addresses that are told of runs' ends; `/api/v1/deliveries`: how that
went."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import Body
from mentatlab.runs.deliveries import Delivery, DeliveryStore, State
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.outbox import ANY_END
from mentatlab.runs.subscriptions import SubscriptionStore

Reader = Annotated[Caller, Depends(requires("read"))]
Author = Annotated[Caller, Depends(requires("run"))]
Some = Annotated[int, Query(ge=1, le=200)]


class SubscriptionBody(Body):
    """`events`: run_finished (any end), run_succeeded, run_partial, run_failed, run_cancelled.
    `flow_id`: only of this stored flow's runs."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2083)
    events: list[str] = Field(default=[ANY_END], max_length=20)
    flow_id: str = Field(default="", max_length=200)
    secret: str | None = Field(default=None, min_length=16, max_length=200)


class SubscriptionAnswer(BaseModel):
    """`stopped_at`: when the receiver answered 410, and was told nothing more; 0 = it has not."""

    id: str
    url: str
    events: list[str]
    flow_id: str
    created_at: float
    stopped_at: float


class NewSubscriptionAnswer(SubscriptionAnswer):
    """`secret` is told here and never again."""

    secret: str


class SubscriptionsAnswer(BaseModel):
    subscriptions: list[SubscriptionAnswer]


class DeliveryAnswer(BaseModel):
    """Times in Unix seconds, 0 = not yet. `state`: waiting (for its attempt at `next_at`),
    delivered, or failed; `status` (0 = there was no answer) and `error` are of the last attempt."""

    id: str
    subscription_id: str
    run_id: str
    event: str
    url: str
    state: State
    attempts: int
    created_at: float
    next_at: float
    ended_at: float
    status: int
    error: str


class DeliveriesAnswer(BaseModel):
    """`next`: what the next page is `before`; null = this is the last one."""

    deliveries: list[DeliveryAnswer]
    next: str | None


def subscriptions_router(
    subscriptions: SubscriptionStore, deliveries: DeliveryStore, flows: FlowStore
) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["webhooks"])

    @router.post("/subscriptions", status_code=201, summary="Tell an address of runs' ends")
    async def add(body: SubscriptionBody, who: Author) -> NewSubscriptionAnswer:
        if body.flow_id:
            await flows.get(body.flow_id, workspace=who.workspace)
        made, secret = await subscriptions.create(
            workspace=who.workspace, now=time.time(), **body.model_dump()
        )
        return NewSubscriptionAnswer.model_validate({**_fields(made), "secret": secret})

    @router.get("/subscriptions", summary="The workspace's subscriptions")
    async def list_subscriptions(who: Reader) -> SubscriptionsAnswer:
        found = await subscriptions.list(workspace=who.workspace)
        return SubscriptionsAnswer(
            subscriptions=[SubscriptionAnswer.model_validate(_fields(one)) for one in found]
        )

    @router.delete(
        "/subscriptions/{subscription_id}", status_code=204, summary="End a subscription"
    )
    async def delete(subscription_id: str, who: Author) -> None:
        await subscriptions.delete(subscription_id, workspace=who.workspace)

    @router.get("/deliveries", summary="What was told to whom, and what is still to be told")
    async def list_deliveries(
        who: Reader,
        subscription_id: str | None = None,
        run_id: str | None = None,
        state: State | None = None,
        limit: Some = 50,
        before: str | None = None,
    ) -> DeliveriesAnswer:
        found = await deliveries.list(
            workspace=who.workspace,
            subscription_id=subscription_id,
            run_id=run_id,
            state=state,
            limit=limit,
            before=before,
        )
        answers = [_answer(delivery) for delivery in found]
        return DeliveriesAnswer(
            deliveries=answers, next=found[-1].id if len(found) == limit else None
        )

    @router.post("/deliveries/{delivery_id}/redeliver", summary="Send it again, now")
    async def redeliver(delivery_id: str, who: Author) -> DeliveryAnswer:
        found = await deliveries.redeliver(delivery_id, workspace=who.workspace, now=time.time())
        return _answer(found)

    return router


def _answer(delivery: Delivery) -> DeliveryAnswer:
    return DeliveryAnswer.model_validate(msgspec.structs.asdict(delivery))


def _fields(subscription: object) -> dict[str, Any]:
    return msgspec.to_builtins(subscription)
