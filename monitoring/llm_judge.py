"""The LLM judge: the rubric filled in, sent to a chat model, and its reply read without trust."""

from __future__ import annotations

import time
from collections.abc import Sequence

from infra.errors import QuillError
from infra.llm.chat import ChatModel, Decoding
from monitoring.pairwise import PairwiseLlmJudge, Preference
from monitoring.rubric import MAX_OUTPUT, MAX_QUERY, RUBRIC_NAME, neutralised, read_reply, rubric_messages, schema
from monitoring.text_features import is_refusal
from store.prompts import PromptVersion
from streams.events import CRITERIA, Score, Unscored
from streams.protocols import JudgeInput, Judgement

__all__ = ["RUBRIC_NAME", "LlmJudge", "PairwiseLlmJudge", "Preference", "rubric_messages"]

FAILED = "the judge failed"
"""How the reason begins when the chat model gave no answer at all."""
DECODING = Decoding(temperature=0.0, max_tokens=240)


class LlmJudge:
    """Implements `streams.protocols.Judge` over any chat model.

    Whatever goes wrong (unreachable, timed out, a reply that is no verdict) is Unscored with the reason.
    """

    def __init__(self, chat: ChatModel, rubric: PromptVersion) -> None:
        self._chat = chat
        self._rubric = rubric

    @property
    def id(self) -> str:
        """`llm-judge:<model>@<number of the rubric's version>`; with another rubric than ours, its name before it."""
        version = self._rubric.number if self._rubric.name == RUBRIC_NAME else self._rubric.ref
        return f"llm-judge:{self._chat.model}@{version}"

    @property
    def model(self) -> str:
        """The chat model's name."""
        return self._chat.model

    def judge(self, subjects: Sequence[JudgeInput]) -> list[Judgement]:
        """One judgement per subject, one request each. Empty responses and refusals cost no request."""
        return [self._judgement(subject) for subject in subjects]

    def _judgement(self, subject: JudgeInput) -> Judgement:
        started = time.perf_counter()
        scores = self._scores(subject)
        return Judgement(judge=self.id, scores=scores, latency_ms=(time.perf_counter() - started) * 1000)

    def _scores(self, subject: JudgeInput) -> tuple[Score, ...]:
        if not subject.response.strip():
            return unscored("empty response")
        if is_refusal(subject.response):
            return unscored("refused")
        query, output = neutralised(subject.prompt, MAX_QUERY), neutralised(subject.response, MAX_OUTPUT)
        try:
            messages = self._rubric.render(query=query, output=output)
            completion = self._chat.complete(messages, DECODING, json_schema=schema())
        except QuillError as error:
            return unscored(f"{FAILED}: {error}")
        if completion.finish_reason == "length" and not completion.text.rstrip().endswith("}"):
            return unscored("the judge's reply was cut off")
        return read_reply(completion.text)


def unscored(reason: str) -> tuple[Unscored, ...]:
    """Every criterion of the rubric, not judged for one reason."""
    return tuple(Unscored(criterion=criterion, reason=reason) for criterion in CRITERIA)
