"""What is masked, what is left, and how long it takes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.llm.chat import Message
from streams.events import (
    AlertChanged,
    Citation,
    DocumentUpserted,
    EvaluationRecorded,
    FeedbackGiven,
    InteractionRecorded,
    ReleaseChanged,
    ToolCall,
    TraceSpan,
    Unscored,
    Verdict,
    now,
)
from streams.masking import Masker, mask_payload

MASKER = Masker()
SECRET = "write to ada@example.org"
SAFE = "write to [EMAIL]"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GUARD = Path(__file__).resolve().parents[4] / "shared" / "data" / "guard" / "presidio_synth" / "synth_dataset_v2.json"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail ada.lovelace+x@mail.example.co.uk.", "mail [EMAIL]."),
        ("<jürgen@müller.de>", "<[EMAIL]>"),
        ("call +49 (0)30 1234-5678 now", "call [PHONE] now"),
        ("or 0049 30 123456", "or [PHONE]"),
        ("+4915112345678, which Luhn would take", "[PHONE], which Luhn would take"),
        ("US: (555) 123-4567 or 555-123-4567 x12", "US: [PHONE] or [PHONE]"),
        ("UK 020 7946 0958, France 01.84.17.61.18", "UK [PHONE], France [PHONE]"),
        ("Phone: 9498777106", "Phone: [PHONE]"),
        ("number 5018000000000009 and 13 digits 4222222222222", "number [CARD] and 13 digits [CARD]"),
        ("card number is 135412345678911", "card number is [CARD]"),
        ("card ４１１１１１１１１１１１１１１１", "card [CARD]"),
        ("Mobile: 723 813 266\nDesk: (99) 645-791", "Mobile: [PHONE]\nDesk: [PHONE]"),
        ("12 Main St 12345\n781 1704 office\n(579)888-3058 fax", "12 Main St 12345\n[PHONE] office\n[PHONE] fax"),
        (
            "Nobody is answering at 467 3395. Send texts to 72 128 827!",
            "Nobody is answering at [PHONE]. Send texts to [PHONE]!",
        ),
        ("please call him back on 9472 7916", "please call him back on [PHONE]"),
        ("0490 75 40 81, 001-518-640-0854, +46 (0)8 928 571 38", "[PHONE], [PHONE], [PHONE]"),
        ('{"phone": "5551234567"}', '{"phone": "[PHONE]"}'),
        ("NY 10001 212-555-0199 ext. 12", "NY 10001 [PHONE]"),
        ("card 4111 1111 1111 1111, 4111-1111-1111-1111", "card [CARD], [CARD]"),
        ("amex 3782 822463 10005 visa 4111111111111111", "amex [CARD] visa [CARD]"),
        ("1234 4111 1111 1111 1111", "1234 [CARD]"),
        ("IBAN DE89 3704 0044 0532 0130 00 and gb97loww46888763196059", "IBAN [IBAN] and [IBAN]"),
        ("from 192.168.0.17:80 and 10.0.0.1.", "from [IP]:80 and [IP]."),
        ("[2001:db8::1]:443, ::1, ::ffff:10.1.2.3", "[[IP]]:443, [IP], [IP]"),
        ("key sk-proj-abcDEF0123456789abcd ok", "key [SECRET] ok"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "[SECRET]"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("Authorization: Bearer abcdef.0123456789", "Authorization: Bearer [SECRET]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "[SECRET]"),
        ("api_key: sk-abcdefghijklmnopqrst, key=gsk_abcdefghijklmnopqrst", "api_key: [SECRET], key=[SECRET]"),
        ("“ada@example.org” <ada@xn--mller-kva.de>", "“[EMAIL]” <[EMAIL]>"),
        ("password=hunter2x api_key: 'a1b2c3d4e5f6g7'", "password=[SECRET] api_key: '[SECRET]'"),
        ("postgres://bob:s3cr3t@db/x", "postgres://bob:[SECRET]@db/x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc+/=\n-----END RSA PRIVATE KEY-----.", "[SECRET]."),
    ],
)
def test_personal_data_and_secrets_become_placeholders(text: str, masked: str):
    assert MASKER.mask(text).text == masked


@pytest.mark.parametrize(
    "text",
    [
        "vectors of 256 512 1024 dimensions, 0.25 and 1e-05",
        "on 2024-03-05 10:30:00 or 05.03.2024 or 01/02/2024",
        "Python 3.11.7, torch 2.9.0, version 1.2.3",
        "std::vector<int>, a::b, 10:30:00, 00:1A:2B:3C:4D:5E",
        "order 4111111111111112, total 1234567890123",
        "DE88370400440532013000 is no IBAN, nor is XX12ABCDEFGHIJKLMNO",
        "each token: embedding; key = value; secret: none; tokens: 512",
        "@decorator, a @ b, user@localhost",
        "sha256:3b1f0c5e9a7d4c2b8e6f1a0d9c8b7a6f5e4d3c2b1a0f9e8d7c6b5a4f3e2d1c0b",
        "018f2c3a9b7d7e1c8a6b5d4c3e2f1a0b",
        "version 1.2.3.4, build 10.0.19045.1, numpy==1.26.4, pip>=9.0.0.1",
        "arXiv:1706.03762, arXiv 0704.0001, doi 10.1038/s41586-019-1666-5, ISSN 0028-0836, ISBN 0-306-40615-2",
        "Nature (2019) 574-505, years 2019-2024, pages 100 200 300",
        "550e8400-e29b-41d4-a716-446655440000 and 1716239022123 and 1716239022",
        "ports 8080 8081 8443, 1 000 000 mobile users, 128 000 tokens, 3.14159265358979",
        "replay the messages from 1234567 to 2345678, API calls to 1 000 000 users, called at 1716239022",
        "iPhone 15 2024 2025, SSN 054-28-6917, :040000 040000 def9e3",
        "git@github.com:org/repo.git and icon@2x.png and lodash@4.17.21",
        "0x7fff5fbff8c0, 00 11 22 33 44 55 66 77, 01 02 03 04 05 06 07",
        "999.1.2.3 and 1.2.3.4.5",
        "epochs 100-200-3000, layers 1-100-200-3000, version 105.200.3000",
        "",
    ],
)
def test_what_only_looks_alike_is_left(text: str):
    assert MASKER.mask(text).text == text


def test_spans_point_into_the_original():
    text = "a@b.org, then 10.0.0.1"
    masked = MASKER.mask(text)
    assert [(text[span.start : span.end], span.kind) for span in masked.spans] == [
        ("a@b.org", "EMAIL"),
        ("10.0.0.1", "IP"),
    ]


@given(st.text(alphabet="a1@.:+-() DE/=k", max_size=300))
def test_spans_are_ordered_apart_and_account_for_every_character(text: str):
    masked = MASKER.mask(text)
    position, rebuilt = 0, ""
    for span in masked.spans:
        assert position <= span.start < span.end <= len(text)
        rebuilt += text[position : span.start] + f"[{span.kind}]"
        position = span.end
    assert rebuilt + text[position:] == masked.text


def interaction(text: str) -> InteractionRecorded:
    return InteractionRecorded(
        interaction_id="i-0022-00000002",
        conversation_id="7 4111 1111 1111 1111",
        prompt=text,
        messages=(Message(role="user", content=text),),
        response=text,
        finish_reason="error",
        error=text,
        context=(text,),
        citations=(Citation(marker=1, chunk_id="k", source="s", quote=text, sentence=text, support=1),),
        unsupported=(text,),
        tool_calls=(ToolCall(name="t", arguments=text, result=text),),
        spans=(TraceSpan(span_id="s", name=text, kind=text, start=NOON, end=NOON, attributes={"a": text}),),
        tags={"who": text},
    )


def test_every_free_text_of_an_interaction_is_masked_and_ids_are_not():
    assert mask_payload(interaction(SECRET), MASKER) == interaction(SAFE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ada@example.org", "EMAIL"),
        ("whatsapp:+4915112345678", "PHONE"),
        ("4111111111111111", "CARD"),
        ("10.0.0.1", "IP"),
    ],
)
def test_ids_that_tell_of_a_person_become_pseudonyms(name: str, kind: str):
    pseudonym = MASKER.mask_id(name)
    assert re.fullmatch(rf"\[{kind}:[a-p]{{20}}\]", pseudonym)
    assert MASKER.mask_id(pseudonym) == pseudonym == MASKER.mask(pseudonym).text
    assert MASKER.mask_id(name) == pseudonym != MASKER.mask_id(f"{name} ")
    given = interaction(SAFE).model_copy(
        update={"interaction_id": name, "conversation_id": name, "session_id": name, "tags": {name: ""}}
    )
    kept = mask_payload(given, MASKER)
    assert isinstance(kept, InteractionRecorded)
    assert {kept.interaction_id, kept.conversation_id, kept.session_id, *kept.tags} == {pseudonym}
    feedback = mask_payload(FeedbackGiven(interaction_id=name, reviewer=name, preferred_over=name), MASKER)
    assert isinstance(feedback, FeedbackGiven)
    assert {feedback.interaction_id, feedback.reviewer, feedback.preferred_over} == {pseudonym}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "i1",
        "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ba02fadc-e7f1-4d70-b0e5-2724406737ac",
        "n@ 4111111111111111",
    ],
)
def test_ids_that_tell_of_nobody_stay(name: str):
    assert MASKER.mask_id(name) == name


def test_free_text_of_the_other_payloads_is_masked():
    scores = (
        Verdict(criterion="relevance", score=1, justification=SECRET),
        Unscored(criterion="coherence", reason=SECRET),
    )
    evaluation = mask_payload(EvaluationRecorded(interaction_id="i", judge="j@1", scores=scores), MASKER)
    feedback = FeedbackGiven(interaction_id="i", comment=SECRET, edited_response=SECRET)
    alert = AlertChanged(
        alert_id="a", alert_key="k", state="open", title=SECRET, detector="d", statistic=1, threshold=1,
        interaction_ids=(), opened_at=now(), note=SECRET,
    )  # fmt: skip
    release = ReleaseChanged(channel="c", release_id="r", action="promoted", reason=SECRET, actor="a")
    for payload in (evaluation, *(mask_payload(each, MASKER) for each in (feedback, alert, release))):
        text = payload.model_dump_json()
        assert "ada@" not in text
        assert SAFE in text
    assert mask_payload(FeedbackGiven(interaction_id="i"), MASKER) == FeedbackGiven(interaction_id="i")


def test_documents_stay_word_for_word():
    document = DocumentUpserted(document_id="d", source="s", title=SECRET, text=SECRET, content_hash="h")
    assert mask_payload(document, MASKER) is document


def test_nul_becomes_the_replacement_character():
    masked = mask_payload(interaction("a\0b"), MASKER)
    assert isinstance(masked, InteractionRecorded)
    assert masked.prompt == "a\ufffdb"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    ["1", "1 ", "a@", "a.", "1:", "a", "%", "-----BEGIN PRIVATE KEY-----", "+11111111111111111 ", "eyJaaaaaaaa.",
     "DE89 ", "://a:", "password: ", "(11)11 11 ", "4111 1111 1111 1112 ", "phone "],
)  # fmt: skip
def test_hostile_texts_take_time_in_proportion_to_their_length(unit: str):
    # Quadratic patterns would take minutes for this length; the limit above is the assertion.
    text = unit * (300_000 // len(unit))
    assert len(MASKER.mask(text).text) <= len(text) + 300_000


@pytest.mark.corpus
def test_most_of_a_public_set_is_found():
    if not GUARD.exists():
        pytest.skip(f"{GUARD} is not here")
    kinds = {"EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER"}
    wanted = found = 0
    for row in json.loads(GUARD.read_text()):
        spans = MASKER.mask(row["full_text"]).spans
        for each in row["spans"]:
            if each["entity_type"] in kinds:
                wanted += 1
                found += any(s.start <= each["start_position"] and s.end >= each["end_position"] for s in spans)
    assert wanted > 150
    assert found / wanted > 0.97
