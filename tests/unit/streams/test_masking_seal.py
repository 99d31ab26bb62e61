"""Placeholders that a key turns back, and patterns of the operator."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from infra.errors import InputError, SettingsError
from infra.settings import MaskingSettings, load_settings
from streams.masking import Masker, open_masker
from streams.masking.seal import Seal, unmask

KEY = SecretStr(base64.b64encode(bytes(range(32))).decode())
OTHER = SecretStr(base64.b64encode(bytes(range(1, 33))).decode())
TEXT = "Ada <ada@example.org>, card 4111 1111 1111 1111, again ada@example.org"
SEALED = Masker(seal=Seal(KEY))


def test_the_key_turns_back_what_it_masked():
    masked = SEALED.mask(TEXT)
    assert "ada@" not in masked.text
    assert "4111" not in masked.text
    assert [span.kind for span in masked.spans] == ["EMAIL", "CARD", "EMAIL"]
    assert unmask(masked.text, KEY) == (TEXT, 3, 0)


def test_equal_values_get_equal_placeholders():
    text = SEALED.mask("ada@example.org ada@example.org bob@example.org").text.split()
    assert text[0] == text[1] != text[2]
    assert text[0].startswith("[EMAIL:")


def test_another_key_or_an_altered_placeholder_opens_nothing():
    masked = SEALED.mask("ada@example.org").text
    relabelled = masked.replace("EMAIL", "PHONE")
    altered = masked[:-3] + ("A" if masked[-3] != "A" else "B") + masked[-2:]
    assert unmask(masked, OTHER) == (masked, 0, 1)
    assert unmask(relabelled, KEY) == (relabelled, 0, 1)
    assert unmask(altered, KEY) == (altered, 0, 1)
    assert unmask("[EMAIL] [NOTE: none]", KEY) == ("[EMAIL] [NOTE: none]", 0, 0)


def test_masking_twice_changes_nothing_and_a_typed_placeholder_hides_nothing():
    once = SEALED.mask(TEXT + " password: hunter2secret").text
    assert SEALED.mask(once).text == once
    assert "sk-abcdefghijklmnop1234" not in SEALED.mask("[NOTE:sk-abcdefghijklmnop1234]").text


def test_the_key_turns_back_an_id_and_masking_it_twice_changes_nothing():
    sealed = SEALED.mask_id("team of ada@example.org")
    assert "ada" not in sealed
    assert SEALED.mask_id(sealed) == SEALED.mask(sealed).text == sealed
    assert unmask(sealed, KEY) == ("team of ada@example.org", 1, 0)


def test_without_a_key_nothing_is_kept_of_a_value():
    assert open_masker(MaskingSettings()).mask("ada@example.org").text == "[EMAIL]"
    with pytest.raises(InputError, match="key"):
        unmask("[EMAIL]", SecretStr(""))


@pytest.mark.parametrize("key", ["short", "é" * 40, base64.b64encode(b"16 bytes of key.").decode()])
def test_a_malformed_key_is_refused_and_not_shown(key: str):
    with pytest.raises(SettingsError, match="openssl rand") as refusal:
        open_masker(MaskingSettings(key=SecretStr(key)))
    assert key not in str(refusal.value)


def test_the_key_never_prints():
    assert KEY.get_secret_value() not in repr(MaskingSettings(key=KEY))


@given(st.text(max_size=60))
def test_every_text_comes_back(text: str):
    around = f"{text} ada@example.org {text}"
    assert unmask(SEALED.mask(around).text, KEY).text == around


def test_lone_surrogates_come_back():
    masker = Masker({"NAME": "x.y"}, Seal(KEY))
    masked = masker.mask("\ud800 x\ud800y")
    assert [(span.start, span.end, span.kind) for span in masked.spans] == [(2, 5, "NAME")]
    assert unmask(masked.text, KEY).text == "\ud800 x\ud800y"


def test_patterns_of_the_operator_come_first():
    masker = open_masker(MaskingSettings(patterns={"STAFF": r"E-\d{6}", "CASE": r"(?i)case \d+"}))
    masked = masker.mask("E-123456 of Case 77, mail E-123456@example.org")
    assert masked.text == "[STAFF] of [CASE], mail [STAFF]@example.org"


@pytest.mark.parametrize(
    ("name", "pattern", "said"),
    [
        ("X", "a*", "empty"),
        ("X", "", "empty"),
        ("X", r"\b", "empty"),
        ("X", r"(?m)$", "empty"),
        ("X", r"a|\B", "empty"),
        ("X", r"(?=a)b", "look-around"),
        ("X", r"(?<!a)b", "look-around"),
        ("X", r"(a)\1", "back-references"),
        ("X", "(", "cannot be used"),
        ("X", r"(?:a{1000}){1000}", "cannot be used"),
        ("lower", "a", "name"),
        ("A B", "a", "name"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused_with_the_reason(name: str, pattern: str, said: str):
    with pytest.raises(SettingsError, match=said):
        open_masker(MaskingSettings(patterns={name: pattern}))


def test_patterns_come_from_the_file_or_as_json_from_the_environment(tmp_path):
    file = tmp_path / "quillstream.toml"
    file.write_text("[masking.patterns]\nSTAFF = 'E-\\d+'\n")
    assert load_settings(file, environment={}).masking.patterns == {"STAFF": r"E-\d+"}
    environment = {"QUILL_MASKING_PATTERNS": '{"CASE": "c+"}', "QUILL_MASKING_KEY": KEY.get_secret_value()}
    masking = load_settings(tmp_path / "none.toml", environment=environment).masking
    assert masking.patterns == {"CASE": "c+"}
    assert masking.key == KEY
    with pytest.raises(SettingsError, match=r"masking\.patterns"):
        load_settings(tmp_path / "none.toml", environment={"QUILL_MASKING_PATTERNS": "c+"})


@pytest.mark.timeout(60)
def test_a_pattern_that_would_backtrack_takes_time_in_proportion_to_the_text():
    # A backtracking engine would not end on this; the limit above is the assertion.
    assert Masker({"X": "(a+)+b"}).mask("a" * 200_000).spans == ()
