"""Rows as token ids: the model's own chat template, and which tokens the loss counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import InputError


@dataclass(frozen=True)
class Example:
    """One row as tokens. Tokens from `answer_start` on are the answer and its end-of-turn token; only they are
    predicted by the loss."""

    tokens: tuple[int, ...]
    answer_start: int

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids the loss counts: the answer, then the end-of-turn token."""
        return self.tokens[self.answer_start :]


def chat_prompt(tokenizer: Any, instruction: str) -> str:
    """The instruction as the model's template puts it, up to where the assistant begins to write."""
    messages = [{"role": "user", "content": instruction}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(tokenizer: Any, instruction: str, answer: str) -> Example:
    """Tokenize one row the way it is met when serving: the prompt by itself, then the answer, then the end of turn.

    Raises `InputError` when the template does not end a prompt where an answer begins, or when the counted tokens
    do not read as the answer and its end.
    """
    prompt = chat_prompt(tokenizer, instruction)
    turn = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(turn, tokenize=False))
    if not whole.startswith(prompt + answer):
        raise InputError("the chat template rewrites the answer", seen=whole[-120:], rule="prompt, then the answer")
    end = _ids(tokenizer, whole[len(prompt) + len(answer) :])[0]
    head = _ids(tokenizer, prompt)
    example = Example((*head, *_ids(tokenizer, answer), end), len(head))
    counted = tokenizer.decode(list(example.answer), clean_up_tokenization_spaces=False)
    if counted != answer + tokenizer.decode([end]):
        raise InputError("the loss mask does not cover the answer", seen=counted[:120], rule=answer[:120])
    return example


def encode_rows(tokenizer: Any, rows: Sequence[Mapping[str, str]], longest: int) -> list[Example]:
    """The rows as examples, without those of more than `longest` tokens; same order."""
    examples = [encode(tokenizer, row["instruction"], row["answer"]) for row in rows]
    return [example for example in examples if len(example.tokens) <= longest]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
