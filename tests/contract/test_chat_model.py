"""Every chat model behaves alike: scripted, any endpoint (here our llama.cpp server), Transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from weights_fixture import cached_models

from infra.errors import CorruptArtifact, InputError
from infra.llm.chat import ChatModel, Decoding, Message
from infra.llm.opening import open_chat
from infra.llm.scripted import ScriptedChat
from infra.llm.transformers import TransformersChat
from infra.llm.weights import dequantized
from infra.settings import LlmSettings

SMALL = "smollm2-135m-instruct"
ASK = [
    Message(role="system", content="You answer in plain English."),
    Message(role="user", content="Tell me what a library is, in several sentences."),
]
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "enum": [1, 2, 3]}, "reason": {"type": "string", "maxLength": 40}},
    "required": ["score", "reason"],
    "additionalProperties": False,
}


class Interrupted(Exception):
    """Raised by a listener that has heard enough."""


class ChatModelContract:
    holds_schema = True

    @pytest.fixture
    def chat(self) -> ChatModel:
        raise AssertionError("each backend brings its own")

    def test_it_writes_and_counts(self, chat: ChatModel) -> None:
        done = chat.complete(ASK, Decoding(max_tokens=24))
        assert done.text.strip()
        assert 0 < done.output_tokens <= 24
        assert done.input_tokens >= 10

    def test_max_tokens_ends_it_with_length(self, chat: ChatModel) -> None:
        done = chat.complete(ASK, Decoding(max_tokens=5))
        assert (done.finish_reason, done.output_tokens) == ("length", 5)

    def test_a_stop_sequence_ends_it_and_is_not_part_of_the_text(self, chat: ChatModel) -> None:
        whole = chat.complete(ASK, Decoding(max_tokens=24)).text
        word = whole.split()[3]
        pieces: list[str] = []
        done = chat.complete(ASK, Decoding(max_tokens=24, stop=(word,)), on_text=pieces.append)
        assert done.finish_reason == "stop"
        assert done.text.rstrip() == whole[: whole.index(word)].rstrip()
        assert "".join(pieces) == done.text

    def test_streamed_pieces_join_to_the_text(self, chat: ChatModel) -> None:
        pieces: list[str] = []
        done = chat.complete(ASK, Decoding(max_tokens=16), on_text=pieces.append)
        assert "".join(pieces) == done.text
        assert len(pieces) > 3
        assert done.output_tokens > 0
        assert done.input_tokens > 0

    def test_a_listener_that_raises_stops_it_and_the_next_request_works(self, chat: ChatModel) -> None:
        heard: list[str] = []

        def listen(piece: str) -> None:
            heard.append(piece)
            if len(heard) == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            chat.complete(ASK, Decoding(max_tokens=400), on_text=listen)
        assert len(heard) == 2
        assert chat.complete(ASK, Decoding(max_tokens=5)).text

    def test_greedy_writing_repeats_itself(self, chat: ChatModel) -> None:
        first = chat.complete(ASK, Decoding(max_tokens=16))
        assert chat.complete(ASK, Decoding(max_tokens=16)) == first

    def test_it_has_a_name(self, chat: ChatModel) -> None:
        assert chat.model

    def test_a_schema_is_held_or_refused(self, chat: ChatModel) -> None:
        if not self.holds_schema:
            with pytest.raises(InputError, match="JSON schema"):
                chat.complete(ASK, json_schema=SCHEMA)
            return
        done = chat.complete(ASK, Decoding(max_tokens=80), json_schema=SCHEMA)
        answer = json.loads(done.text)
        assert set(answer) == {"score", "reason"}
        assert answer["score"] in {1, 2, 3}


def _librarian(messages: object) -> str:
    return "A library lends books, keeps silence and welcomes everyone who likes to read there."


class TestScriptedChat(ChatModelContract):
    @pytest.fixture
    def chat(self) -> ChatModel:
        return ScriptedChat(_librarian)

    def test_a_schema_is_held_or_refused(self, chat: ChatModel) -> None:
        """A script is free to break a schema: that is what judges are tested with."""
        assert ScriptedChat(['{"score": 9}']).complete(ASK, json_schema=SCHEMA).text == '{"score": 9}'

    def test_replies_come_in_turn_and_run_out(self) -> None:
        chat = ScriptedChat(["one", "two"])
        assert [chat.complete(ASK).text, chat.complete(ASK[1:]).text] == ["one", "two"]
        assert chat.calls == [tuple(ASK), tuple(ASK[1:])]
        with pytest.raises(InputError, match="no reply left"):
            chat.complete(ASK)


@pytest.mark.small_models
class TestLlamaCppServer(ChatModelContract):
    @pytest.fixture
    def chat(self) -> ChatModel:
        return open_chat(LlmSettings(), cached_models(), model=SMALL)

    def test_a_prompt_that_does_not_fit_says_so(self, chat: ChatModel) -> None:
        with pytest.raises(InputError, match="does not fit"):
            chat.complete([Message(role="user", content="word " * 6000)])


@pytest.mark.small_models
class TestTransformersChat(ChatModelContract):
    holds_schema = False

    @pytest.fixture(scope="class")
    def chat(self) -> ChatModel:
        models = cached_models()
        return TransformersChat(dequantized(SMALL, models), name=SMALL)

    def test_a_prompt_that_does_not_fit_says_so(self, chat: ChatModel) -> None:
        with pytest.raises(InputError, match="does not fit"):
            chat.complete([Message(role="user", content="word " * 9000)])

    def test_an_adapter_changes_the_text_and_the_name(self, chat: ChatModel, adapter_directory: Path) -> None:
        adapted = TransformersChat(dequantized(SMALL, cached_models()), adapter_directory, name=SMALL)
        name, _, digits = adapted.model.partition("+adapter:")
        assert (name, len(digits)) == (SMALL, 12)
        assert adapted.complete(ASK, Decoding(max_tokens=12)).text != chat.complete(ASK, Decoding(max_tokens=12)).text

    def test_a_broken_adapter_is_named(self, adapter_directory: Path) -> None:
        (adapter_directory / "adapter_model.safetensors").write_bytes(b"broken")
        with pytest.raises(CorruptArtifact, match=str(adapter_directory)):
            TransformersChat(dequantized(SMALL, cached_models()), adapter_directory).complete(ASK)


@pytest.fixture
def adapter_directory(tmp_path: Path) -> Path:
    """A PEFT adapter for SmolLM2 with random weights."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(dequantized(SMALL, cached_models()), dtype=torch.float32)
    recipe = peft.LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(base, recipe).save_pretrained(tmp_path)
    return tmp_path
