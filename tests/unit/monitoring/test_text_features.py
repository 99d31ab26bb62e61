"""What is counted in a text."""

from __future__ import annotations

import pytest

from monitoring import text_features as text

GOOD = "A vector index keeps neighbours together. Dr. Smith measured it, e.g. with 3.5 million rows. It took a minute."


def test_sentences_survive_abbreviations_decimals_and_tokenised_text():
    assert text.sentences(GOOD) == [
        "A vector index keeps neighbours together.",
        "Dr. Smith measured it, e.g. with 3.5 million rows.",
        "It took a minute.",
    ]
    assert len(text.sentences("chelsea made an offer . the club said no .")) == 2
    assert text.sentences("# Title\n- one item\n- two items\n```\nx = 1. Y\n```") == ["Title", "one item", "two items"]


def test_citation_markers_and_markup_are_not_prose():
    assert text.prose("**Bold** claim [1][2], `code` [[3]](http://x.y).") == "Bold claim, code."


def test_content_words_compare_by_stem_and_leave_out_the_request():
    assert text.missing_words("Could you write a LinkedIn post about databases?", "A database stores rows.") == []
    assert text.missing_words("Explain quantization and pruning", "Quantized weights are small.") == ["pruning"]
    assert text.support_shares(["Cats sleep.", "Dogs bark.", "the of"], "A cat sleeps") == [1.0, 0.0, 1.0]


def test_repetition_is_local_and_grows_with_loops():
    assert text.repeated_pair_share("It is fast. " * 10) > 0.8
    assert text.repeated_pair_share(GOOD) == 0.0
    far_apart = "alpha beta " + " ".join(f"w{i}" for i in range(100)) + " alpha beta"
    assert text.repeated_pair_share(far_apart) == 0.0
    assert text.stutter_share("the deal deal is off") == 0.25
    assert text.repeated_sentence(["It is fast.", "It is cheap.", "It is fast!"]) == "It is fast!"


@pytest.mark.parametrize(
    ("ending", "unfinished"),
    [
        ("and then the index returns the nearest", True),
        ("and that is all.", False),
        ("- a list item without a stop at the end", False),
        ("he said “enough.”", False),
        ("Follow for more #vectors", False),
        ("", False),
    ],
)
def test_unfinished_endings(ending, unfinished):
    assert text.is_unfinished(ending) is unfinished


def test_broken_words_and_misplaced_pairs():
    assert text.non_word_share("zxcvb qwrtp the sdfghjk") > 0.7
    assert text.non_word_share("LLaMA-3 runs HNSW at https://x.y for rhythm, myth and C++.") == 0.0
    assert text.misplaced_pair_share("The of a is to the and. An a of.") > 0.3
    assert text.misplaced_pair_share(GOOD) == 0.0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Summarise it in 50 words", (50, 57)),
        ("Write 3 sentences about HNSW", (66, 75)),
        ("Explain it briefly", (20, 60)),
        ("Write a blog post on LoRA", (120, 320)),
        ("What is LoRA?", (40, 120)),
        ("Summarise.\n" + "Nothing. " * 60 + "He said 5 words. " + "Nothing. " * 60, (40, 120)),
    ],
)
def test_wanted_length(prompt, expected):
    assert text.wanted_words(prompt) == expected


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("This is not in the sources.", True),
        ("I don't know.", True),
        ("The context does not mention it, sorry.", True),
        ("Vector search returns what is near.", False),
        ("If a fact is not in the sources, say so. " * 10, False),
    ],
)
def test_refusals(answer, refused):
    assert text.is_refusal(answer) is refused
