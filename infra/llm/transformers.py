"""Chat through Transformers, with a PEFT adapter when one is given: the engine that training itself uses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import CorruptArtifact, InputError
from infra.llm.chat import Completion, Decoding, Message
from infra.llm.weights import adapter_digits, quiet_transformers


class TransformersChat:
    """A `ChatModel` over a directory of safetensors (see `infra.llm.weights.dequantized`).

    `adapter_directory` holds `adapter_model.safetensors` and `adapter_config.json`. The weights load at the first
    use: float32 on CPU, where it is the fastest type without matrix units, and the stored type on CUDA. Requests
    run one at a time. A JSON schema is refused: this backend has no grammar.
    """

    def __init__(self, directory: Path, adapter_directory: Path | None = None, *, name: str = "") -> None:
        self._directory = directory
        self._adapter = adapter_directory
        self._name = name or directory.name
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    @property
    def model(self) -> str:
        """Model name, with `+adapter:<12 digits>` when an adapter is applied."""
        return f"{self._name}+adapter:{adapter_digits(self._adapter)}" if self._adapter else self._name

    def complete(
        self,
        messages: Sequence[Message],
        decoding: Decoding | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Write, see `ChatModel.complete`.

        Raises `InputError` for a JSON schema or a prompt that does not fit, `CorruptArtifact` for unusable weights.
        """
        if json_schema is not None:
            raise InputError("Transformers cannot hold text to a JSON schema", fix="use llama.cpp or an endpoint")
        decoding = decoding or Decoding()
        with self._lock:
            model, tokenizer = self._load()
            conversation = [message.model_dump() for message in messages]
            inputs = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            count = int(inputs["input_ids"].shape[1])
            _check_fits(count + decoding.max_tokens, int(model.config.max_position_embeddings))
            text = _Pieces(tokenizer, decoding.stop, on_text)
            _generate(model, inputs, decoding, text)
            text.end()  # after a stop sequence `generate` did not
            finished = "length" if not text.stopped and text.count >= decoding.max_tokens else "stop"
            return Completion(
                text=text.said, finish_reason=finished, input_tokens=count, output_tokens=max(text.count, 1)
            )

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = _load(self._directory, self._adapter)
        return self._loaded


class _Stop(Exception):
    """A stop sequence was written."""


class _Pieces:
    """What `generate` calls with each token: turns tokens into text and holds back what a stop sequence may claim."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], None] | None) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._on_text = on_text
        self._held = max((len(sequence) for sequence in stop), default=1) - 1
        self._tokens: list[int] = []
        self._prompt_seen = False
        self._text = ""
        self.said = ""
        self.stopped = False

    @property
    def count(self) -> int:
        """Tokens written, the end token included."""
        return len(self._tokens)

    def put(self, value: Any) -> None:
        """Take the prompt (first call) or the next token. Raises `_Stop` and whatever `on_text` raises."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._tokens += [int(token) for token in value.flatten()]
        self.stopped = self._tokens[-1] in _end_tokens(self._tokenizer)
        self._text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        places = [place for sequence in self._stop if (place := self._text.find(sequence)) >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.stopped = True
            raise _Stop
        if not self._text.endswith("\ufffd"):  # half of a character: the next token completes it
            self._say(len(self._text) - self._held)

    def end(self) -> None:
        """Say what was held back."""
        self._say(len(self._text))

    def _say(self, until: int) -> None:
        piece = self._text[len(self.said) : until]
        if piece:
            self.said += piece
            if self._on_text is not None:
                self._on_text(piece)


def _end_tokens(tokenizer: Any) -> set[int]:
    return {token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None}


def _generate(model: Any, inputs: Any, decoding: Decoding, pieces: _Pieces) -> None:
    import torch

    sampling = (
        {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
        if decoding.temperature > 0
        else {"do_sample": False}
    )
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(decoding.seed)
        try:
            model.generate(
                **inputs,
                max_new_tokens=decoding.max_tokens,
                repetition_penalty=decoding.repeat_penalty,
                streamer=pieces,
                **sampling,
            )
        except _Stop:
            return


def _load(directory: Path, adapter: Path | None) -> tuple[Any, Any]:
    quiet_transformers()
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto" if cuda else torch.float32)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        seen = adapter or directory
        fix = "delete it and make it again; an adapter must fit its base model"
        raise CorruptArtifact("Transformers cannot load this model", seen=seen, rule=str(error), fix=fix) from error
    return model.to("cuda" if cuda else "cpu").eval(), tokenizer


def _check_fits(tokens: int, limit: int) -> None:
    if tokens > limit:
        rule = f"prompt and max_tokens together are at most {limit} tokens"
        raise InputError("the prompt does not fit the model's context", seen=tokens, rule=rule, fix="shorten it")
