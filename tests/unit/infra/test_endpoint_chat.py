"""What `EndpointChat` sends, and what it makes of an endpoint's refusals. The endpoint is a few lines on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from infra.errors import InputError, NotFound, QuillError, Unavailable
from infra.llm.chat import Decoding, Message
from infra.llm.endpoint import Connection, EndpointChat
from infra.llm.opening import open_chat
from infra.settings import LlmSettings, ModelSettings

ASK = [Message(role="system", content="Be brief."), Message(role="user", content="Hi")]
GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


class Endpoint(ThreadingHTTPServer):
    """Answers with the scripted (status, body) pairs in turn, the last one for ever, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, dict[str, Any]]] = [(200, GOOD)]
        self.received: list[dict[str, Any]] = []
        self.keys: list[str] = []

    def chat(self, **options: Any) -> EndpointChat:
        place = Connection(base_url=f"http://127.0.0.1:{self.server_address[1]}/v1", api_key=SecretStr("secret-key"))
        return EndpointChat("m", lambda: place, **{"retries": 0, **options})


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.server.keys.append(self.headers["Authorization"])
        status, answer = self.server.answers[0]
        if len(self.server.answers) > 1:
            self.server.answers.pop(0)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(message: str, **fields: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}


def test_it_sends_the_decoding_and_reads_the_answer(endpoint):
    decoding = Decoding(temperature=0.5, top_p=0.9, max_tokens=7, seed=3, repeat_penalty=1.3, stop=("END",))
    done = endpoint.chat().complete(ASK, decoding)
    assert (done.text, done.finish_reason, done.input_tokens, done.output_tokens) == ("hello", "stop", 3, 1)
    sent = endpoint.received[0]
    assert {name: sent[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 3,
        "stop": ["END"],
    }
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert endpoint.keys == ["Bearer secret-key"]


def test_the_repeat_penalty_goes_only_to_llama_cpp(endpoint):
    endpoint.chat().complete(ASK, Decoding(repeat_penalty=1.3))
    endpoint.chat(llama=True).complete(ASK, Decoding(repeat_penalty=1.3))
    strict, llama = endpoint.received
    assert {"repeat_penalty", "min_p", "top_k"} & set(strict) == set()
    assert llama["repeat_penalty"] == 1.3


def test_a_schema_is_sent_and_put_into_words_where_it_is_refused(endpoint):
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    endpoint.answers = [(400, refusal("response_format json_schema is not supported")), (200, GOOD)]
    chat = endpoint.chat()
    for _ in range(2):
        assert chat.complete(ASK, json_schema=schema).text == "hello"
    first, second, third = endpoint.received
    assert first["response_format"]["json_schema"]["schema"] == schema
    for sent in (second, third):
        assert "response_format" not in sent
        assert "Be brief." in sent["messages"][0]["content"]
        assert json.dumps(schema) in sent["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "message", "error", "clue"),
    [
        (401, "Incorrect API key", Unavailable, "api_key"),
        (403, "not your project", Unavailable, "api_key"),
        (404, "no such model", NotFound, "does not know the model m"),
        (429, "slow down", Unavailable, "rate limit"),
        (400, "This model's maximum context length is 4096 tokens", InputError, "does not fit"),
        (400, "temperature is out of range", InputError, "temperature is out of range"),
        (500, "oops", Unavailable, "endpoint failed"),
    ],
)
def test_refusals_say_what_to_do(endpoint, status, message, error, clue):
    endpoint.answers = [(status, refusal(message))]
    with pytest.raises(error, match=clue) as caught:
        endpoint.chat().complete(ASK)
    assert "secret-key" not in str(caught.value)


def test_a_passing_rate_limit_is_waited_out(endpoint):
    endpoint.answers = [(429, refusal("slow down")), (200, GOOD)]
    assert endpoint.chat(retries=1).complete(ASK).text == "hello"


def test_an_answer_without_usage_counts_nothing(endpoint):
    endpoint.answers = [(200, {name: value for name, value in GOOD.items() if name != "usage"})]
    assert endpoint.chat().complete(ASK).output_tokens == 0


def test_nobody_listening_is_unavailable():
    chat = EndpointChat("m", lambda: Connection(base_url="http://127.0.0.1:9/v1"), retries=0)
    with pytest.raises(Unavailable, match=r"cannot be reached.*127\.0\.0\.1:9"):
        chat.complete(ASK)


def test_a_vanished_llama_server_is_connected_to_once_more(endpoint):
    places = [Connection(base_url="http://127.0.0.1:9/v1")]

    def connect() -> Connection:
        port = endpoint.server_address[1]
        return places.pop() if places else Connection(base_url=f"http://127.0.0.1:{port}/v1")

    assert EndpointChat("m", connect, llama=True).complete(ASK).text == "hello"


def test_settings_choose_the_endpoint(tmp_path):
    llm = LlmSettings(endpoint="http://127.0.0.1:9/v1", model="writer")
    models = ModelSettings(cache=tmp_path)
    assert open_chat(llm, models).model == "writer"
    assert open_chat(llm, models, model="other").model == "other"
    with pytest.raises(InputError, match="local adapter"):
        open_chat(llm, models, adapter=tmp_path / "adapter.gguf")
    with pytest.raises(QuillError, match="no adapter at this path"):
        open_chat(LlmSettings(), models, adapter=tmp_path / "adapter.gguf")
