"""Search, writing, health over HTTP."""

from __future__ import annotations

import pytest

from infra.errors import Unavailable

HIT = {
    "chunk_id": "sha256:c1",
    "document_id": "lora-1",
    "source": "notes/lora.md",
    "score": 0.5,
    "text": "LoRA trains two small matrices.",
}


def test_search_gives_the_same_hits_by_post_and_get(client):
    assert client.post("/v1/search", json={"question": "lora"}).json() == [HIT]
    assert client.get("/v1/search", params={"q": "lora", "limit": 3}).json() == [HIT]
    assert client.get("/v1/search", params={"q": "cooking"}).json() == []


@pytest.mark.parametrize(
    ("path", "params"),
    [("q", {"q": " "}), ("q", {}), ("limit", {"q": "x", "limit": 0}), ("limit", {"q": "x", "limit": 51})],
)
def test_a_malformed_search_names_the_parameter(client, path, params):
    response = client.get("/v1/search", params=params)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == path


def test_write_gives_the_documented_shape(client, platform):
    body = client.post("/v1/write", json={"question": " What does LoRA train? ", "max_tokens": 9}).json()
    assert sorted(body) == ["chunks", "citations", "interaction_id", "latency_ms", "release", "text", "usage"]
    assert body["chunks"] == [{"chunk_id": "sha256:c1", "text": "LoRA trains two small matrices."}]
    assert body["citations"][0]["quote"] in body["chunks"][0]["text"]
    assert body["usage"] == {"input_tokens": 40, "output_tokens": 6}
    assert platform.requests[0].question == "What does LoRA train?"
    assert platform.requests[0].max_tokens == 9


def test_write_on_a_channel_without_a_release_is_404(client):
    response = client.post("/v1/write", json={"question": "x", "channel": "canary"})
    assert response.status_code == 404
    assert "no release is promoted" in response.json()["error"]["message"]


def test_health_is_503_only_when_it_failed(client, platform):
    assert client.get("/healthz").status_code == 200
    platform.problem = Unavailable("x")
    assert client.get("/healthz").status_code == 503
    assert client.get("/healthz").json()["parts"]["log"]["state"] == "failed"


def test_index_tells_build_and_position(client):
    assert client.get("/v1/index").json()["position"] == {"0": 3}


def test_the_openapi_description_lists_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert sorted(paths) == [
        "/healthz",
        "/v1/chat/completions",
        "/v1/feedback",
        "/v1/index",
        "/v1/models",
        "/v1/search",
        "/v1/write",
    ]
    assert client.get("/docs").status_code == 200
