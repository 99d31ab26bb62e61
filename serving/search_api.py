"""Search, grounded writing and the state of the installation over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

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

    @routes.get("/v1/index", summary="Build and position of the index")
    def index() -> IndexState:
        return platform.index()

    @routes.get("/healthz", summary="How each part is", response_model=Health)
    def healthz() -> JSONResponse:
        health = platform.health()
        return JSONResponse(health.model_dump(mode="json"), 503 if health.status == "failed" else 200)

    return routes
