"""Which passages become answers, and how their markup goes."""

from __future__ import annotations

import pytest

from training.passages import Unfit, answer_of

SENTENCE = "An index keeps vectors close to their neighbours so that a search visits few of them."


def long_enough(*extra: str) -> str:
    return " ".join([SENTENCE] * 3 + list(extra))


def test_markup_goes_and_words_stay():
    text = "## Heading\n\n" + long_enough("The **list** `efSearch` is [wide](x.md) <br> and *shown* here.")
    answer = answer_of(text)
    assert answer.startswith("An index keeps")
    assert answer.endswith("The list efSearch is wide and shown here.")


def test_a_passage_that_begins_and_ends_inside_sentences_is_cut_to_whole_ones():
    answer = answer_of("was left over from before. " + long_enough() + " And then this one never")
    assert answer == long_enough()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (long_enough() + "\n\n```python\nprint(1)\n```", "code"),
        (SENTENCE, "short"),
        (" ".join([SENTENCE] * 20), "long"),
        ("Intro to it.\n\n" + "\n".join(f"- item {n} of the list is here" for n in range(12)), "list"),
        (long_enough(*(f"See [this]({n}.md)." for n in range(9))), "links"),
        (long_enough("An example can be found here."), "links"),
        ("| a | b |\n|---|---|\n| c | d |\n\n" + long_enough(), "markup"),
        (long_enough("It follows that $a = b$ holds."), "markup"),
        ("This is said of it. " + long_enough(), "leans on what came before"),
        (long_enough("I wrote it in my garden."), "first person"),
        (long_enough("Version 1.2.3 mends what 1.2.2 broke."), "release notes"),
    ],
)
def test_unfit_passages_are_named_by_reason(text: str, reason: str):
    with pytest.raises(Unfit, match=reason):
        answer_of(text)


def test_short_lists_stay_as_lines_and_a_lead_in_without_its_list_goes():
    text = long_enough() + "\n\nIt has two parts:\n\n- the graph\n- the store\n"
    assert answer_of(text).endswith("It has two parts:\n\n- the graph\n- the store")
    assert answer_of(long_enough() + "\n\nThe call is:") == long_enough()
