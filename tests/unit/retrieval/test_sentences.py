"""Sentence spans are verbatim slices and end where sentences end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.sentences import sentence_spans, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four…", ["One.", "Two!", "Three?", "Four…"]),
        ("Models, e.g. BERT, learn. See Fig. 3 of Smith et al. for more.", None),
        ("It grew by 3.5 percent in v1.2.3 of the U.S. release.", None),
        ("J. Smith wrote it. K. Jones did not.", ["J. Smith wrote it.", "K. Jones did not."]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("A title without a stop\n\nA paragraph.", ["A title without a stop", "A paragraph."]),
        ("Points:\n- first\n- second\n1. third", ["Points:", "- first", "- second", "1. third"]),
        ("1. First item. It goes on.", ["1. First item.", "It goes on."]),
        ("Call `a.b()`. Then wait.", ["Call `a.b()`.", "Then wait."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    found = sentences(text)
    if expected is None:
        assert [sentence for sentence in found if len(sentence) < 10] == []
    else:
        assert found == expected


@given(st.text(alphabet=st.sampled_from('aB1. \n!?"-*#)'), max_size=80))
def test_spans_are_ordered_and_leave_out_only_white_space(text: str) -> None:
    spans = sentence_spans(text)
    at = 0
    for start, end in spans:
        assert text[at:start].strip() == ""
        assert start < end
        assert text[start:end] == text[start:end].strip()
        at = end
    assert text[at:].strip() == ""
