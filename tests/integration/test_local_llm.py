"""The machine's llama.cpp server as a process: shared, replaced when killed, patient with broken files."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from weights_fixture import cached_models, require_weights

from infra.errors import CorruptArtifact, NotFound
from infra.llm import local
from infra.llm.chat import Decoding, Message
from infra.llm.opening import open_chat
from infra.models import resolve
from infra.settings import LlmSettings, ModelSettings

SMALL = "smollm2-135m-instruct"
LAYERS, WIDTH, RANK, STRENGTH = 30, 576, 4, 0.25
PROMPT = "The capital of France is"
HELLO = [Message(role="user", content="Say hello.")]


@pytest.fixture(scope="module")
def small() -> str:
    """SmolLM2 as a path, so that a server with its own cache directory finds it."""
    return str(resolve(SMALL, cached_models()).path)


@pytest.fixture
def models(tmp_path: Path) -> Iterator[ModelSettings]:
    """Settings whose server nobody else uses."""
    settings = ModelSettings(cache=tmp_path / "cache", hub=False)
    yield settings
    local.stop(settings)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def write_adapter(path: Path, seed: int = 7) -> Path:
    """A GGUF LoRA on the query projections of SmolLM2, large enough to move every probability."""
    import gguf

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(LAYERS):
        stem = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{stem}.lora_a", draw.normal(0, STRENGTH, (RANK, WIDTH)).astype(np.float32))
        writer.add_tensor(f"{stem}.lora_b", draw.normal(0, STRENGTH, (WIDTH, RANK)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def server_pid(models: ModelSettings) -> int:
    found = local.status(models)
    assert found is not None
    return int(found["pid"])


@pytest.mark.small_models
def test_processes_and_threads_share_one_server(models, small):
    script = (
        "import sys; from pathlib import Path; from infra.llm import local; from infra.settings import ModelSettings;"
        "print(local.ensure(ModelSettings(cache=Path(sys.argv[1])), sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(models.cache), small]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    mine: list[str] = []
    threads = [threading.Thread(target=lambda: mine.append(local.ensure(models, small))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    theirs = [other.communicate(timeout=120)[0].strip() for other in others]
    assert len(mine) == 3
    assert set(mine) == set(theirs)
    found = local.status(models)
    assert [model["model"] for model in found["models"]] == [small]
    assert found["memory_bytes"] > 50_000_000


@pytest.mark.small_models
def test_a_killed_server_is_replaced_and_an_open_chat_goes_on(models, small):
    chat = open_chat(LlmSettings(), models, model=small)
    before = chat.complete(HELLO, Decoding(max_tokens=8))
    first = server_pid(models)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: local.status(models) is None)
    assert chat.complete(HELLO, Decoding(max_tokens=8)).text == before.text
    assert server_pid(models) != first


@pytest.mark.small_models
@pytest.mark.parametrize("content", ["", "{}", "not json", '{"pid": 1, "port": 9, "token": "x", "started_at": ""}'])
def test_a_stale_registry_is_replaced(models, small, content):
    registry = models.cache / "llama-server" / "server.json"
    registry.parent.mkdir(parents=True)
    registry.write_text(content)
    assert local.status(models) is None
    assert local.stop(models) is False
    assert local.ensure(models, small).startswith("http://127.0.0.1:")
    assert json.loads(registry.read_text())["pid"] == server_pid(models)


@pytest.mark.small_models
def test_stop_ends_the_process_and_forgets_it(models, small):
    local.ensure(models, small)
    pid = server_pid(models)
    assert local.stop(models) is True
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert local.status(models) is None
    assert local.stop(models) is False


@pytest.mark.small_models
def test_an_idle_model_is_unloaded_and_an_idle_server_ends(models, small, monkeypatch):
    monkeypatch.setattr(local, "UNLOAD_AFTER", 1.0)
    monkeypatch.setattr(local, "EXIT_AFTER", 6.0)
    local.ensure(models, small)
    wait_for(lambda: (local.status(models) or {"models": []})["models"] == [])
    assert local.status(models) is not None
    wait_for(lambda: local.status(models) is None)
    assert not (models.cache / "llama-server" / "server.json").exists()


@pytest.mark.small_models
def test_a_broken_file_is_named_and_the_server_lives_on(models, small, tmp_path):
    base_url = local.ensure(models, small)
    pid = server_pid(models)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(small).read_bytes()[:30_000_000])
    with pytest.raises(CorruptArtifact, match=r"cut\.gguf.*corrupted or incomplete"):
        local.ensure(models, str(cut))
    noise = tmp_path / "adapter.gguf"
    noise.write_bytes(b"GGUF" + b"\xff" * 1000)
    with pytest.raises(CorruptArtifact, match=r"adapter\.gguf"):
        local.ensure(models, small, noise)
    with pytest.raises(CorruptArtifact, match="lora"):
        local.ensure(models, small, Path(small))
    with pytest.raises(NotFound, match="no adapter"):
        local.ensure(models, small, tmp_path / "missing.gguf")
    assert server_pid(models) == pid
    assert local.ensure(models, small) == base_url


@pytest.mark.small_models
def test_ports_refuse_strangers(models, small):
    base_url = local.ensure(models, small)
    registered = json.loads((models.cache / "llama-server" / "server.json").read_text())
    assert (models.cache / "llama-server" / "server.json").stat().st_mode & 0o077 == 0
    model_port = int(base_url.removesuffix("/v1").rpartition(":")[2])
    for port, path in ((registered["port"], "/status"), (model_port, "/slots")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == 401
        connection.close()


@pytest.mark.small_models
def test_a_cancelled_stream_frees_the_server(models, small):
    class Enough(Exception):
        pass

    def listen(piece: str) -> None:
        raise Enough

    chat = open_chat(LlmSettings(), models, model=small)
    with pytest.raises(Enough):
        chat.complete([Message(role="user", content="Count to 900.")], Decoding(max_tokens=3000), on_text=listen)
    chat.complete(HELLO, Decoding(max_tokens=4))
    connection = local.connect(models, small)
    port = int(connection.base_url.removesuffix("/v1").rpartition(":")[2])

    def slots() -> list[dict[str, object]]:
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        asked.request("GET", "/slots", headers={"Authorization": f"Bearer {connection.api_key.get_secret_value()}"})
        return list(json.loads(asked.getresponse().read()))

    wait_for(lambda: not any(slot["is_processing"] for slot in slots()), seconds=5)


@pytest.mark.small_models
def test_next_token_probabilities_follow_the_adapter_and_its_scale(models, small, tmp_path):
    adapter = write_adapter(tmp_path / "adapter.gguf")
    prompts = [PROMPT, "Water boils at"]
    base = local.next_token_logprobs(models, small, None, prompts, 5)
    assert [len(likeliest) for likeliest in base] == [5, 5]
    assert next(iter(base[0])) == " Paris"
    assert all(value <= 0 for likeliest in base for value in likeliest.values())

    def distance(scale: float) -> float:
        adapted = local.next_token_logprobs(models, small, adapter, prompts, 20_000, scale=scale)
        pairs = [
            (one[token], base_one[token]) for one, base_one in zip(adapted, base, strict=True) for token in base_one
        ]
        return float(np.mean([abs(ours - theirs) for ours, theirs in pairs]))

    found = {scale: distance(scale) for scale in (0.0, 1.0, 2.0)}
    assert found[0.0] < 0.02
    assert found[1.0] > 0.2
    assert abs(found[2.0] - found[1.0]) > 0.1
    assert distance(0.0) == found[0.0]


@pytest.mark.small_models
def test_an_adapter_has_its_own_server_and_name(models, small, tmp_path):
    adapter = write_adapter(tmp_path / "adapter.gguf")
    plain = open_chat(LlmSettings(), models, model=small)
    adapted = open_chat(LlmSettings(), models, model=small, adapter=adapter)
    assert adapted.model.startswith(f"{small}+adapter:")
    assert plain.complete(HELLO, Decoding(max_tokens=12)).text != adapted.complete(HELLO, Decoding(max_tokens=12)).text
    loaded = [(model["model"], model["adapter"]) for model in local.status(models)["models"]]
    assert sorted(loaded, key=str) == sorted([(small, None), (small, str(adapter))], key=str)


@pytest.mark.small_models
def test_llama_cpp_and_transformers_read_the_same_tokens_and_template(small):
    from transformers import AutoTokenizer

    from infra.llm.weights import dequantized

    models = cached_models()
    tokenizer = AutoTokenizer.from_pretrained(dequantized(SMALL, models))
    texts = [
        "Hello world",
        "  spaces\n\n\ttabs",
        "Héllo wörld 😀 日本語",
        "<|im_start|>user\nHi<|im_end|>\n",
        "1,234.56 ",
    ]
    for text in texts:
        assert local.tokens(models, SMALL, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    rendered = tokenizer.apply_chat_template([HELLO[0].model_dump()], add_generation_prompt=True, tokenize=False)
    counted = open_chat(LlmSettings(), models, model=SMALL).complete(HELLO, Decoding(max_tokens=1)).input_tokens
    assert counted == len(tokenizer(rendered, add_special_tokens=False)["input_ids"])


@pytest.mark.models
@pytest.mark.parametrize("name", ["qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_the_large_models_write_and_hold_a_schema(name):
    chat = open_chat(LlmSettings(), require_weights(name), model=name)
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    ask = [Message(role="user", content="What is the capital of France? Answer as JSON.")]
    done = chat.complete(ask, Decoding(max_tokens=40), json_schema=schema)
    assert json.loads(done.text) == {"capital": "Paris"}


@pytest.mark.models
def test_the_adapter_base_is_the_same_model_in_both_engines():
    """llama.cpp multiplies with 8-bit activations, so its probabilities differ a little from the exact ones."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infra.llm.weights import dequantized

    name = "qwen2.5-coder-0.5b-instruct"
    models = require_weights(name)
    directory = dequantized(name, models)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    (served,) = local.next_token_logprobs(models, name, None, [PROMPT], 5)
    with torch.inference_mode():
        logits = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1]
    exact = torch.log_softmax(logits, -1)
    gaps = [abs(value - float(exact[tokenizer.encode(token)[0]])) for token, value in served.items()]
    assert len(gaps) == 5
    assert float(np.mean(gaps)) < 0.3
