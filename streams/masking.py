"""Masking of personal data and secrets in text, before it touches a disk.

Each detector finds candidates with RE2, in time linear in the text, and confirms them (Luhn for cards, ISO 7064 mod 97
for IBANs, the address parser for IP addresses). What it masks becomes a placeholder such as `[EMAIL]`, or with a key
one such as `[EMAIL:…]` that its holder can turn back (`unmask`); equal values get equal placeholders, so that equal
texts stay equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

import re2
from pydantic import Field

from infra.identity import Value
from infra.settings import MaskingSettings
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
from streams.mask_numbers import Finding, addresses, ibans, numbers
from streams.mask_patterns import Pattern
from streams.mask_seal import Seal
from streams.mask_secrets import emails, secrets

# Arabic, Persian, Devanagari, Bengali and full-width digits.
_ZEROS = (0x660, 0x6F0, 0x966, 0x9E6, 0xFF10)
_DIGITS = re2.compile("[" + "".join(f"{chr(zero)}-{chr(zero + 9)}" for zero in _ZEROS) + "]")
_TO_ASCII = {zero + digit: 48 + digit for zero in _ZEROS for digit in range(10)}


class Span(Value):
    """Something that was masked."""

    start: int = Field(ge=0, description="Offset of its first character in the original text.")
    end: int = Field(ge=0, description="Offset after its last character in the original text.")
    kind: str = Field(description="EMAIL, PHONE, CARD, IBAN, IP, SECRET, or the name of a pattern from the settings.")


class Masked(Value):
    """A text without what was found in it."""

    text: str = Field(description="The text with placeholders such as [EMAIL].")
    spans: tuple[Span, ...] = Field(description="What was replaced, in order, without overlaps.")


class Masker:
    """Finds e-mail addresses, phone and card numbers, IBANs, IP addresses, keys and tokens, and what `patterns` name.

    `patterns` maps a name for the placeholder to a regular expression of RE2; `SettingsError` when one cannot be used.
    With a `seal` placeholders carry what they hide, encrypted, and those already in a text are left as they are.
    """

    def __init__(self, patterns: Mapping[str, str] | None = None, seal: Seal | None = None) -> None:
        custom = [Pattern(name, expression).findings for name, expression in (patterns or {}).items()]
        self._detectors = (*custom, secrets, emails, ibans, addresses, numbers)
        self._seal = seal

    def mask(self, text: str) -> Masked:
        """Replace each finding by its placeholder; where two overlap, the one found by the earlier detector stays."""
        spans = tuple(Span(start=start, end=end, kind=kind) for start, end, kind in self._findings(text))
        if not spans:
            return Masked(text=text, spans=())
        pieces: list[str] = []
        position = 0
        for span in spans:
            pieces += [text[position : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            position = span.end
        return Masked(text="".join([*pieces, text[position:]]), spans=spans)

    def _findings(self, text: str) -> list[Finding]:
        readable = text if text.isascii() else _readable(text)
        kept = [Finding(start, end, "") for start, end in self._seal.places(readable)] if self._seal else []
        for detector in self._detectors:
            kept = _merged(kept, detector(readable))
        return [finding for finding in kept if finding.kind]

    def _placeholder(self, kind: str, value: str) -> str:
        return self._seal.token(kind, value) if self._seal else f"[{kind}]"


def open_masker(settings: MaskingSettings) -> Masker:
    """The masker that the settings name. Raises `SettingsError` for a pattern or a key that cannot be used."""
    return Masker(settings.patterns, Seal(settings.key) if settings.key.get_secret_value() else None)


def _readable(text: str) -> str:
    """A text of the same length that RE2 reads: no lone surrogates, which have no UTF-8 form, and digits from ASCII."""
    plain = text.encode("utf-8", "replace").decode()
    return plain.translate(_TO_ASCII) if _DIGITS.search(plain) else plain


def _merged(kept: list[Finding], found: Iterable[Finding]) -> list[Finding]:
    """Both, in order, without those found that overlap what is kept. Each comes in order and without overlaps."""
    free: list[Finding] = []
    index = 0
    for finding in found:
        while index < len(kept) and kept[index].end <= finding.start:
            index += 1
        if index == len(kept) or kept[index].start >= finding.end:
            free.append(finding)
    return sorted(kept + free, key=attrgetter("start")) if free else kept


def mask_payload(payload: Payload, masker: Masker | None = None) -> Payload:
    """The payload with its free text masked, ids left alone, and NUL, which no store takes, replaced by U+FFFD.

    Documents pass as they are: they are the user's own corpus, published on purpose, and grounding and citations
    need them word for word; what people type and models answer is what must not be kept.
    """

    masking = masker or Masker()

    def text(value: str) -> str:
        return masking.mask(value.replace("\0", "\ufffd")).text

    def texts(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(text(value) for value in values)

    match payload:
        case InteractionRecorded():
            return _interaction(payload, text, texts)
        case EvaluationRecorded():
            return payload.model_copy(update={"scores": tuple(_score(score, text) for score in payload.scores)})
        case FeedbackGiven():
            edited = payload.edited_response
            words = {"comment": text(payload.comment), "reviewer": text(payload.reviewer)}
            return payload.model_copy(update=words | {"edited_response": edited if edited is None else text(edited)})
        case AlertChanged():
            return payload.model_copy(update={"title": text(payload.title), "note": text(payload.note)})
        case ReleaseChanged():
            return payload.model_copy(update={"reason": text(payload.reason)})
        case _:
            return payload


def _interaction(
    payload: InteractionRecorded, text: Callable[[str], str], texts: Callable[[Sequence[str]], tuple[str, ...]]
) -> InteractionRecorded:
    messages = [message.model_copy(update={"content": text(message.content)}) for message in payload.messages]
    citations = [
        citation.model_copy(update={"quote": text(citation.quote), "sentence": text(citation.sentence)})
        for citation in payload.citations
    ]
    return payload.model_copy(
        update={
            "prompt": text(payload.prompt),
            "response": text(payload.response),
            "error": payload.error if payload.error is None else text(payload.error),
            "messages": tuple(messages),
            "citations": tuple(citations),
            "context": texts(payload.context),
            "unsupported": texts(payload.unsupported),
            "tool_calls": tuple(_tool_call(call, text) for call in payload.tool_calls),
            "spans": tuple(_trace_span(span, text) for span in payload.spans),
            "tags": {name: text(value) for name, value in payload.tags.items()},
        }
    )


def _tool_call(call: ToolCall, text: Callable[[str], str]) -> ToolCall:
    result = call.result if call.result is None else text(call.result)
    return call.model_copy(update={"arguments": text(call.arguments), "result": result})


def _trace_span(span: TraceSpan, text: Callable[[str], str]) -> TraceSpan:
    attributes = {name: text(value) for name, value in span.attributes.items()}
    return span.model_copy(update={"name": text(span.name), "attributes": attributes})


def _score(score: Score, text: Callable[[str], str]) -> Score:
    if isinstance(score, Verdict):
        return score.model_copy(update={"justification": text(score.justification)})
    return score.model_copy(update={"reason": text(score.reason)})
