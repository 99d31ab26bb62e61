"""What people say of answers: kept on the stream before the caller is told that it was."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, model_validator

from infra.errors import Unavailable
from infra.identity import Value
from serving.surface import Platform
from streams.events import Criterion, FeedbackGiven

KEEP_SECONDS = 10.0
"""How long a request waits until its event is durable; on this machine that takes milliseconds."""

Id = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S")]
Rating = Annotated[float, Field(ge=1, le=5)]


class Feedback(Value):
    """What a person says of one interaction; it may arrive before the interaction itself is stored."""

    interaction_id: Id = Field(description="The rated interaction.")
    reviewer: str = Field("", max_length=256, description="Who rates; empty means anonymous.")
    ratings: dict[Criterion, Rating] = Field(default_factory=dict, description="Criterion to 1..5.")
    edited_response: str | None = Field(None, description="The response as the person would have it.")
    preferred_over: Id | None = Field(None, description="Interaction id this one was preferred to.")
    comment: str = Field("", description="Free text.")

    @model_validator(mode="after")
    def _says_something(self) -> Feedback:
        if not self.ratings and self.edited_response is None and not self.preferred_over and not self.comment.strip():
            raise ValueError("give at least one of ratings, edited_response, preferred_over and comment")
        if self.preferred_over == self.interaction_id:
            raise ValueError("preferred_over names another interaction than interaction_id")
        return self


class Accepted(Value):
    """The feedback is on the stream; the monitoring consumer stores it from there."""

    event_id: str = Field(description="Id of the event that carries it.")
    interaction_id: str = Field(description="The rated interaction.")


def router(platform: Platform) -> APIRouter:
    """The route, answered by the platform."""
    routes = APIRouter(tags=["Quillstream"])

    @routes.post("/v1/feedback", status_code=202, summary="A person's rating, edit or preference")
    def feedback(body: Feedback) -> Accepted:
        receipt = platform.emit(FeedbackGiven.model_validate(body.model_dump()))
        if not receipt.wait(KEEP_SECONDS):
            raise Unavailable(
                "the feedback was not kept",
                seen=receipt.reason or f"not durable after {KEEP_SECONDS:g} s",
                fix="send it again; quill doctor shows how the event log is",
            )
        return Accepted(event_id=receipt.event_id, interaction_id=body.interaction_id)

    return routes
