"""Masking of personal data and secrets in text, before it touches a disk.

Each detector finds candidates with a pattern of bounded length and confirms them (Luhn for cards, ISO 7064 mod 97 for
IBANs, the address parser for IP addresses), so the whole takes time linear in the text. What it masks becomes a
placeholder such as `[EMAIL]`, always the same for a kind, so that equal texts stay equal.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pydantic import Field

from infra.identity import Value
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


class Span(Value):
    """Something that was masked."""

    start: int = Field(ge=0, description="Offset of its first character in the original text.")
    end: int = Field(ge=0, description="Offset after its last character in the original text.")
    kind: str = Field(description="EMAIL, PHONE, CARD, IBAN, IP or SECRET.")


class Masked(Value):
    """A text without what was found in it."""

    text: str = Field(description="The text with placeholders such as [EMAIL].")
    spans: tuple[Span, ...] = Field(description="What was replaced, in order, without overlaps.")


class Masker:
    """Finds e-mail addresses, phone and card numbers, IBANs, IP addresses, keys and tokens."""

    def mask(self, text: str) -> Masked:
        """Replace each finding by `[KIND]`; where two overlap, the one found by the earlier detector stays."""
        spans: list[Span] = []
        for detector in _DETECTORS:
            if detector.worth(text):
                taken = sorted((span.start, span.end) for span in spans)
                spans += [Span(start=start, end=end, kind=detector.kind) for start, end in _free(detector, text, taken)]
        spans.sort(key=lambda span: span.start)
        pieces: list[str] = []
        position = 0
        for span in spans:
            pieces += [text[position : span.start], f"[{span.kind}]"]
            position = span.end
        return Masked(text="".join([*pieces, text[position:]]), spans=tuple(spans))


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


# --- detectors --------------------------------------------------------------------------------------------


class _Detector(NamedTuple):
    kind: str
    worth: Callable[[str], object]
    """A quick look at the whole text: false means that nothing of this kind is in it."""
    pattern: re.Pattern[str]
    confirm: Callable[[re.Match[str]], tuple[int, int] | None]
    """The span to mask, or None when the candidate is something else."""


def _free(detector: _Detector, text: str, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Confirmed findings outside what is taken. A refused candidate is searched again from its second character."""
    position = index = 0
    while found := detector.pattern.search(text, position):
        span = detector.confirm(found)
        if span is None:
            position = found.start() + 1
            continue
        position = max(span[1], found.start() + 1)
        while index < len(taken) and taken[index][1] <= span[0]:
            index += 1
        if index == len(taken) or taken[index][0] >= span[1]:
            yield span


def _whole(found: re.Match[str]) -> tuple[int, int]:
    return found.span()


def _last_group(found: re.Match[str]) -> tuple[int, int]:
    """The secret inside its context, such as the value in `password=value`."""
    return found.span(found.lastindex or 0)


def _card(found: re.Match[str]) -> tuple[int, int] | None:
    digits = [int(each) for each in found[0] if each.isdigit()]
    # Luhn, ISO/IEC 7812-1 annex B: every second digit from the right is doubled and its digits are added.
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return found.span() if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits) else None


def _iban(found: re.Match[str]) -> tuple[int, int] | None:
    length = _IBAN_LENGTHS.get(found[0][:2].upper())
    if length is None:
        return None
    places = [index for index, character in enumerate(found[0]) if character != " "]
    if len(places) < length:
        return None
    end = places[length - 1] + 1
    compact = found[0][:end].replace(" ", "").upper()
    # ISO 13616: country and check digits go last, letters count from A = 10, and the number is 1 modulo 97.
    number = int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4]))
    return (found.start(), found.start() + end) if number % 97 == 1 else None


def _phone(found: re.Match[str]) -> tuple[int, int] | None:
    group = "said" if found["said"] else 0
    digits = sum(character.isdigit() for character in found[group])
    return (found.start(group), found.end()) if 7 <= digits <= 15 and not _DATE.match(found[group]) else None


def _address(found: re.Match[str]) -> tuple[int, int] | None:
    try:
        ipaddress.ip_address(found[0])
    except ValueError:
        return None
    return found.span()


# Lengths from the IBAN registry (SWIFT, release 99).
_IBAN_REGISTRY = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_REGISTRY.split()}
_DATE = re.compile(r"(?:\d{4}[-/.]\d\d[-/.]\d\d|\d\d[-/.]\d\d[-/.]\d{4})(?!\d)")

_SECRET = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\w+/=\s\\]{0,8000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
    r"|(?<![\w-])(?:"
    r"sk-[\w-]{16,200}"  # OpenAI, Anthropic
    r"|gh[pousr]_\w{30,255}|github_pat_\w{30,255}|glpat-[\w-]{20,100}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,500}"
    r"|xox[abeoprs]-[\w-]{10,200}"
    r"|hf_[A-Za-z0-9]{20,100}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,300}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}"
    r"|eyJ[\w-]{8,4000}\.[\w-]{8,8000}\.[\w-]{8,1000}"  # JSON web token
    r")"
    r"|\b(?i:bearer)[ ]{1,4}([\w.~+/=-]{16,4000})"
    r"|(?i:passw(?:or)?d)[\"']?[ ]{0,4}[:=][ ]{0,4}[\"']?([^\s\"',;\[\]<>]{6,200})"
    # "token:" and "key =" stand in many texts about language models; a value with a digit makes them a secret.
    r"|(?i:secret|token|key)[\"']?[ ]{0,4}[:=][ ]{0,4}[\"']?((?=[\w./+=~-]{0,80}\d)[\w./+=~-]{12,400})"
    r"|://[^\s:/@]{1,100}:([^\s:/@]{1,200})@"
)
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?!\w)")
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d\d(?: ?[A-Za-z0-9]){11,40}")
_CARD = re.compile(
    r"(?<![\w.])(?:"
    r"[2-6]\d{12,18}|1800\d{11}"
    r"|3\d{3}([ -])\d{6}\1\d{4,5}"  # American Express, Diners Club
    r"|[2-6]\d{3}([ -])\d{4}\2\d{4}\2\d{1,7}"
    r")(?!\w)"
)
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IP6 = re.compile(
    r"(?<![\w:.])(?=[^:\s]{0,4}:[^:\s]{0,4}:)(?=[:A-Fa-f]{0,39}\d)"
    r"[0-9A-Fa-f:]{3,39}+(?:\.\d{1,3}){0,3}+(?![\w:])"
)
# Plain runs such as "256 512 1024" are not taken for numbers to call unless words before them say so.
_PHONE = re.compile(
    r"(?<![\w.@/=#-])(?:"
    r"(?:\+|00)\d{1,3}+(?:[ .-]{0,2}\(?\d{1,5}+\)?){1,6}+"  # international
    r"|\(\d{2,5}\)[ .-]?\d{2,4}(?:[ .-]?\d{2,4}){1,3}"
    r"|0\d{1,4}+(?:[ ./-]\d{2,8}+){1,5}+"  # national, with the leading zero
    r"|\d{3}([.-])\d{3}\1\d{4}"  # North America
    r"|\d{2}-\d{2}-\d{2}-\d{2}"  # Denmark, Norway
    r"|(?i:phone|tel(?:ephone)?|mobile|cell|fax|whatsapp|call (?:me|us|him|her|them))(?i: number| no)?"
    r"[.:]?\s{1,2}(?i:is |at |on )?(?P<said>\d[\d .-]{5,16}\d)"
    r")(?:[ ]?(?:x|ext\.?[ ]?)\d{1,5})?(?!\w|[-.]\d)"
)
_DIGITS = re.compile(r"\d[ .()/-]{0,3}\d").search


def _has(*marks: str) -> Callable[[str], bool]:
    return lambda text: any(mark in text for mark in marks)


_DETECTORS = (
    _Detector("SECRET", len, _SECRET, _last_group),
    _Detector("EMAIL", _has("@"), _EMAIL, _whole),
    _Detector("IBAN", _DIGITS, _IBAN, _iban),
    _Detector("CARD", _DIGITS, _CARD, _card),
    _Detector("IP", _has(":"), _IP6, _address),
    _Detector("IP", _has("."), _IP4, _address),
    _Detector("PHONE", _DIGITS, _PHONE, _phone),
)
