"""Search, grounded writing, feedback and the state of the installation over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from infra.identity import Value
from serving.surface import (
    MAX_HITS,
    Health,
    Hit,
    IndexState,
    Platform,
    SearchRequest,
    Text,
    WriteRequest,
    Written,
    hits,
    to_answer_request,
    written,
)
from streams.events import Criterion, FeedbackGiven

Rating = Annotated[float, Field(ge=1, le=5)]


class Feedback(Value):
    """What a person says of one interaction."""

    interaction_id: str = Field(min_length=1, description="The rated interaction.")
    reviewer: str = Field("", description="Who rates; empty means anonymous.")
    ratings: dict[Criterion, Rating] = Field(default_factory=dict, description="Criterion to 1..5.")
    edited_response: str | None = Field(None, description="The response as the person would have it.")
    preferred_over: str | None = Field(None, description="Interaction id this one was preferred to.")
    comment: str = Field("", description="Free text.")


class Accepted(Value):
    """The feedback is on its way to the stream."""

    interaction_id: str = Field(description="The rated interaction.")


def router(platform: Platform) -> APIRouter:
    """The routes, answered by the platform."""
    routes = APIRouter(tags=["Quillstream"])

    @routes.post("/v1/search", summary="The most relevant chunks, best first")
    def search(body: SearchRequest) -> list[Hit]:
        return hits(platform.search(body.question, body.limit))

    @routes.get("/v1/search", summary="The most relevant chunks, best first")
    def search_by_query(q: Text, limit: Annotated[int, Query(ge=1, le=MAX_HITS)] = 8) -> list[Hit]:
        return hits(platform.search(q, limit))

    @routes.post("/v1/write", summary="Grounded text with checked citations")
    def write(body: WriteRequest) -> Written:
        return written(platform.answer(to_answer_request(body)))

    @routes.post("/v1/feedback", status_code=202, summary="A person's rating, edit or preference")
    def feedback(body: Feedback) -> Accepted:
        platform.rate(FeedbackGiven.model_validate(body.model_dump()))
        return Accepted(interaction_id=body.interaction_id)

    @routes.get("/v1/index", summary="Build and position of the index")
    def index() -> IndexState:
        return platform.index()

    @routes.get("/healthz", summary="How each part is", response_model=Health)
    def healthz() -> JSONResponse:
        health = platform.health()
        return JSONResponse(health.model_dump(mode="json"), 503 if health.status == "failed" else 200)

    return routes
