"""What can be counted in a text without any model: sentences, content words, repetition, damage, filler.

Every function is pure and deterministic; shares are real numbers in 0..1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from monitoring.english import FILLER, NEVER_AFTER, OPENS, POINTS_BACK, REFUSAL, REFUSAL_WORDS, STOP

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|[-*+•]\s+|>\s+|\d{1,3}[.)]\s+)|\*\*|__|`", re.MULTILINE)
_CITATION = re.compile(r"\s*\[{1,2}\d+(?:\s*,\s*\d+)*\]{1,2}(?:\([^)\s]*\))?")
_BOUNDARY = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+(?=[\"'“‘(\[]?[A-Z0-9])|(?<=\s[.!?])\s+|\s*\n+\s*")
_ABBREVIATION = re.compile(r"(?:\b(?:[A-Z]|mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|etc|cf|fig|no|approx))\.$", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
_CLOSED = re.compile(r"[.!?…:;\"'”’)\]}|>*`]$|[\U0001F300-\U0001FAFF\u2600-\u27BF]$|#\w+$|https?://\S+$")
_LENGTHS = (
    (re.compile(r"\b(?:in|using|with|under|within|most|than|about|around|of)\s+(\d{1,4})\s+words?\b", re.I), 1.0),
    (re.compile(r"\b(\d{1,4})[- ]words?\b", re.I), 1.0),
    (re.compile(r"\b(\d{1,2})[- ]sentences?\b", re.I), 22.0),
    (re.compile(r"\b(\d{1,2})[- ]paragraphs?\b", re.I), 90.0),
)
_SHORT_FORMS = re.compile(
    r"\b(?:one|a single) sentence\b|\bbriefly\b|\bin brief\b|\bshort(?:ly)?\b|\bone[- ]line\b|\btweet\b", re.IGNORECASE
)
_LONG_FORMS = re.compile(
    r"\b(?:post|article|essay|blog|tutorial|guide|report|story|in detail|detailed|newsletter|step by step)\b",
    re.IGNORECASE,
)


def prose(text: str) -> str:
    """The text without fenced code, list and heading marks, emphasis and citation markers."""
    return _CITATION.sub("", _MARKUP.sub("", _FENCE.sub("\n", text))).strip()


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text that hold at least one word, in order."""
    found: list[str] = []
    for piece in (piece.strip() for piece in _BOUNDARY.split(prose(text))):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {piece}"
        elif _WORD.search(piece):
            found.append(piece)
    return found


def words(text: str) -> list[str]:
    """Words and numbers, lower-cased."""
    return [match.lower().replace("’", "'") for match in _WORD.findall(text)]


def content_words(text: str) -> dict[str, str]:
    """Stem to first spelling of each word that carries content (no function words, no bare request verbs)."""
    found: dict[str, str] = {}
    for word in words(text):
        if _carries_content(word):
            found.setdefault(_stem(word), word)
    return found


def missing_words(asked: str, answered: str) -> list[str]:
    """Content words of `asked`, as spelled there, whose stem does not occur in `answered`; in order."""
    present = content_words(answered)
    return [spelling for stem, spelling in content_words(asked).items() if stem not in present]


def stems(text: str) -> list[str]:
    """The stem of each content word, repetitions kept, in order."""
    return [_stem(word) for word in words(text) if _carries_content(word)]


def support_shares(parts: Sequence[str], source: str) -> list[float]:
    """For each part the share of its content words that occur in the source by stem; 1.0 when it has none."""
    present = set(stems(source))
    found = [set(stems(part)) for part in parts]
    return [len(wanted & present) / len(wanted) if wanted else 1.0 for wanted in found]


def repeated_pair_share(text: str, window: int = 60) -> float:
    """Share of word pairs that already stood among the `window` pairs before them; independent of the text's length."""
    pairs = list(pairwise(words(text)))
    last: dict[tuple[str, str], int] = {}
    repeated = 0
    for position, pair in enumerate(pairs):
        repeated += position - last.get(pair, -window - 1) <= window
        last[pair] = position
    return repeated / len(pairs) if pairs else 0.0


def shared_pair_share(text: str, source: str) -> float:
    """Share of the text's adjacent word pairs that occur in the source; 1.0 for a text of one word."""
    known = set(pairwise(words(source)))
    pairs = list(pairwise(words(text)))
    return sum(pair in known for pair in pairs) / len(pairs) if pairs else 1.0


def misplaced_pair_share(text: str) -> float:
    """Share of adjacent words of one sentence that English does not put next to each other ("the of", "a is").

    Near 0 for edited text, about 0.05 for the same words shuffled. Counts a function word that ends a sentence too.
    """
    misplaced = total = 0
    for sentence in sentences(text):
        sequence = words(sentence)
        total += len(sequence)
        misplaced += sum(first in OPENS and second in NEVER_AFTER for first, second in pairwise(sequence))
        misplaced += bool(sequence) and sequence[-1] in OPENS
    return misplaced / total if total else 0.0


def repeated_sentence(found: Sequence[str]) -> str | None:
    """The first sentence that repeats an earlier one word for word, or None."""
    counts: Counter[tuple[str, ...]] = Counter()
    for sentence in found:
        key = tuple(words(sentence))
        counts[key] += 1
        if counts[key] > 1 and len(key) > 2:
            return sentence
    return None


def stutter_share(text: str) -> float:
    """Share of adjacent word pairs that are the same word twice ("deal deal")."""
    sequence = words(text)
    pairs = list(pairwise(sequence))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0


def is_unfinished(text: str) -> bool:
    """Whether the text stops in mid sentence: its last character closes nothing and it is no list item or code."""
    stripped = text.rstrip()
    if not stripped or _CLOSED.search(stripped):
        return False
    last_line = stripped.splitlines()[-1]
    return not re.match(r"\s*(?:[-*+•]|\d{1,3}[.)]|#{1,6}\s|\|)", last_line) and len(words(last_line)) > 3


def non_word_share(text: str) -> float:
    """Share of white-space separated tokens of prose that look like no word, number, name or address."""
    tokens = prose(text).split()
    return sum(_looks_broken(token) for token in tokens) / len(tokens) if tokens else 0.0


def refers_back(sentence: str) -> bool:
    """Whether a sentence opens with a word that points to what came before ("this", "however", "they")."""
    first = words(sentence)[:1]
    return bool(first) and first[0].partition("'")[0] in POINTS_BACK


def is_refusal(text: str) -> bool:
    """Whether a short answer says that it cannot answer ("This is not in the sources.")."""
    return len(words(text)) <= REFUSAL_WORDS and REFUSAL.search(text) is not None


def filler_phrases(text: str) -> list[str]:
    """The stock phrases that say nothing, in the order of the list, once each."""
    lowered = text.lower().replace("’", "'")
    return [phrase for phrase in FILLER if phrase in lowered]


def wanted_words(prompt: str) -> tuple[int, int]:
    """How many words the prompt leads one to expect: (enough, too many begins here).

    A stated length wins ("in 50 words", "three sentences" as digits); then short forms, then long forms; a plain
    question is taken to want up to 120 words. Only the ends of a long prompt are read: the middle is material.
    """
    prompt = prompt if len(prompt) < 600 else f"{prompt[:300]}\n{prompt[-200:]}"
    for pattern, factor in _LENGTHS:
        if match := pattern.search(prompt):
            asked = int(float(match.group(1)) * factor)
            return max(1, asked), max(10, int(asked * 1.15))
    if _SHORT_FORMS.search(prompt):
        return 20, 60
    return (120, 320) if _LONG_FORMS.search(prompt) else (40, 120)


def _carries_content(word: str) -> bool:
    bare = word.partition("'")[0]
    return bare not in STOP and (len(bare) > 1 or word.isdigit())


def _looks_broken(token: str) -> bool:
    core = token.strip(".,;:!?\"'“”‘’()[]{}<>*_-–—…/&|`")
    if not core or "://" in core or "@" in core:
        return False
    if "\ufffd" in core or not any(character.isalnum() for character in core):
        return True
    if core.isalpha() and core.isascii() and core.islower():
        return len(core) > 28 or (len(core) > 3 and not re.search("[aeiouy]", core)) or bool(_UNSAYABLE.search(core))
    return False


_UNSAYABLE = re.compile(r"[^aeiouy]{6,}|(.)\1{3,}")


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return str(_stemmer().stemWord(word))
