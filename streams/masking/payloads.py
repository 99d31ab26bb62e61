"""Masking of events: which of their fields hold what people typed and models answered, and which only refer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streams.events import (
    AlertChanged,
    EvaluationRecorded,
    FeedbackGiven,
    InteractionRecorded,
    Payload,
    ReleaseChanged,
    Score,
    ToolCall,
    TraceSpan,
    Verdict,
)
from streams.masking.masker import Masker


def mask_payload(payload: Payload, masker: Masker | None = None) -> Payload:
    """The payload with its free text masked, with pseudonyms for ids and names that would tell of a person
    (`Masker.mask_id`: an application may call a conversation by an e-mail address), and with U+FFFD for NUL, which no
    store takes.

    Documents pass as they are: they are the user's own corpus, published on purpose, and grounding and citations
    need them word for word; what people type and models answer is what must not be kept.
    """
    words = _Words(masker or Masker())
    match payload:
        case InteractionRecorded():
            return _interaction(payload, words)
        case EvaluationRecorded():
            scores = tuple(_score(score, words) for score in payload.scores)
            return payload.model_copy(update={"interaction_id": words.name(payload.interaction_id), "scores": scores})
        case FeedbackGiven():
            return _feedback(payload, words)
        case AlertChanged():
            return payload.model_copy(update={"title": words.text(payload.title), "note": words.text(payload.note)})
        case ReleaseChanged():
            return payload.model_copy(update={"reason": words.text(payload.reason)})
        case _:
            return payload


class _Words:
    """What becomes of texts and of names."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker

    def text(self, value: str) -> str:
        return self._masker.mask(value.replace("\0", "\ufffd")).text

    def texts(self, values: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.text(value) for value in values)

    def name(self, value: str) -> str:
        return self._masker.mask_id(value.replace("\0", "\ufffd"))

    def labels(self, labels: dict[str, str]) -> dict[str, str]:
        return labels and {self.name(label): self.text(value) for label, value in labels.items()}


def _interaction(payload: InteractionRecorded, words: _Words) -> InteractionRecorded:
    messages = [message.model_copy(update={"content": words.text(message.content)}) for message in payload.messages]
    citations = [
        citation.model_copy(update={"quote": words.text(citation.quote), "sentence": words.text(citation.sentence)})
        for citation in payload.citations
    ]
    # Most of it comes back as the same object: a copy of what nothing was found in would cost as much as the search.
    return _changed(
        payload,
        {
            "interaction_id": words.name(payload.interaction_id),
            "conversation_id": words.name(payload.conversation_id),
            "session_id": payload.session_id if payload.session_id is None else words.name(payload.session_id),
            "application": words.name(payload.application),
            "prompt": words.text(payload.prompt),
            "response": words.text(payload.response),
            "error": payload.error if payload.error is None else words.text(payload.error),
            "messages": tuple(messages),
            "citations": tuple(citations),
            "context": words.texts(payload.context),
            "unsupported": words.texts(payload.unsupported),
            "tool_calls": tuple(_tool_call(call, words) for call in payload.tool_calls),
            "spans": tuple(_trace_span(span, words) for span in payload.spans),
            "tags": words.labels(payload.tags),
        },
    )


def _changed(payload: InteractionRecorded, fields: Mapping[str, object]) -> InteractionRecorded:
    changed = {name: value for name, value in fields.items() if value is not getattr(payload, name)}
    return payload.model_copy(update=changed) if changed else payload


def _tool_call(call: ToolCall, words: _Words) -> ToolCall:
    result = call.result if call.result is None else words.text(call.result)
    return call.model_copy(
        update={"name": words.name(call.name), "arguments": words.text(call.arguments), "result": result}
    )


def _trace_span(span: TraceSpan, words: _Words) -> TraceSpan:
    return span.model_copy(
        update={
            "name": words.text(span.name),
            "kind": words.text(span.kind),
            "attributes": words.labels(span.attributes),
        }
    )


def _feedback(payload: FeedbackGiven, words: _Words) -> FeedbackGiven:
    edited, other = payload.edited_response, payload.preferred_over
    return payload.model_copy(
        update={
            "interaction_id": words.name(payload.interaction_id),
            "reviewer": words.name(payload.reviewer),
            "comment": words.text(payload.comment),
            "edited_response": edited if edited is None else words.text(edited),
            "preferred_over": other if other is None else words.name(other),
        }
    )


def _score(score: Score, words: _Words) -> Score:
    if isinstance(score, Verdict):
        return score.model_copy(update={"justification": words.text(score.justification)})
    return score.model_copy(update={"reason": words.text(score.reason)})
