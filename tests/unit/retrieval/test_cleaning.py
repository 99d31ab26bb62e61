"""What no reader reads is dropped; what is said stays."""

from __future__ import annotations

import pytest

from retrieval.cleaning import clean, is_prose


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("[![PyPI](https://b.svg)](https://p) [![CI](https://c.svg)](https://d)\n\nText.", "Text."),
        ("![logo](https://x.png)\n\nText.", "Text."),
        ("- [Install](#install)\n- [Use](#use)\n\nText.", "Text."),
        ('See [the *docs*](https://x.org/a_(b) "title") now.', "See the docs now."),
        ("Read <https://x.org/page> first.", "Read https://x.org/page first."),
        ('<p align="center">\n<img src="x"/>\n</p>\nText with <b>bold</b>.', "Text with bold."),
        ("<!-- a\ncomment -->Text.", "Text."),
        ("import X from './x'\nexport default Y\n\nText.", "Text."),
        ("Table of contents\n\nText.\n\nBack to top", "Text."),
        ("[ref]: https://x.org\nText.", "Text."),
        (
            "one line\nof a wrapped\nparagraph\n\n- an item\n  goes on\n- two",
            "one line of a wrapped paragraph\n\n- an item goes on\n- two",
        ),
        ("**Bold** and __strong__ &amp; `a < b`", "Bold and strong & `a < b`"),
        ("| a      | b |\n|--------|---|\n| 1      | 2 |", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("a < b and c > d", "a < b and c > d"),
    ],
)
def test_furniture_goes_and_words_stay(dirty: str, cleaned: str) -> None:
    assert clean(dirty) == cleaned


def test_code_blocks_stay_as_they_are() -> None:
    code = "```html\n<b>  [x](y)\n![](z)\n```"
    assert clean(f"Text.\n\n{code}\n\nMore.") == f"Text.\n\n{code}\n\nMore."


def test_cleaning_twice_changes_nothing() -> None:
    text = "# T\n\nA [link](x) to **all**.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```"
    assert clean(clean(text)) == clean(text)


def test_prose_is_told_from_lists_of_versions_and_addresses() -> None:
    assert is_prose("Kafka keeps records in partitions, and consumers read them by offset.")
    assert not is_prose("1.2.3 2024-01-02 #123 #124 1.2.2 2023-12-01 #100")
    assert not is_prose("https://a.org https://b.org see https://c.org")
    assert not is_prose("")
