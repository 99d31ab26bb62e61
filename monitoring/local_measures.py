"""What the local judge measures of one answer: numbers in documented ranges, and the words that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.identity import Value
from monitoring import text_features as text
from streams.protocols import JudgeInput

MAX_PROMPT_SENTENCES = 40
MAX_SENTENCES = 60
MAX_PASSAGES = 24

# A single sentence hangs together with itself: it gets the middle value of edited answers.
LONE_LINK = 0.6
# Sentences at or above this cosine say the same (paraphrases in MiniLM's space start at about 0.8).
SAME = 0.8

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Relevance(Value):
    """How far the answer is about what was asked."""

    about: float
    best: float
    strays: float
    coverage: float
    repetition: float
    echo: bool
    missing: tuple[str, ...]


class Coherence(Value):
    """How well the answer hangs together."""

    repetition: float
    redundant: float
    weakest_link: float
    links: float
    fragments: float
    misplaced: float
    broken: float
    unfinished: bool
    repeated: str | None
    stray: str


class Conciseness(Value):
    """How much of the answer could go."""

    words: int
    expected: int
    excess: float
    redundant: float
    off_topic: float
    repetition: float
    filler: tuple[str, ...]
    pair: tuple[int, int] | None


class Faithfulness(Value):
    """How far the passages carry the answer."""

    shared_pairs: float
    nearest: float
    lexical: float
    weakest: float
    unsupported: str


@dataclass(frozen=True)
class Reading:
    """One answer cut into sentences, with the vectors of everything the measures compare.

    Vectors are L2-normalised rows: `prompt` and `response` (d,), `sentences` (n, d), `asked` (m, d), `passages` (p, d).
    """

    subject: JudgeInput
    sentence_texts: tuple[str, ...]
    passage_texts: tuple[str, ...]
    prompt: Vectors
    response: Vectors
    sentences: Vectors
    asked: Vectors
    passages: Vectors


def texts_of(subject: JudgeInput) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(sentences of the response, sentences of the prompt, sentences of the context), each up to its limit.

    Of the context those that share most words with a sentence of the response: embedding all of it would take most
    of the judge's time.
    """
    response = text.sentences(subject.response)[:MAX_SENTENCES]
    passages = dict.fromkeys(sentence for passage in subject.context for sentence in text.sentences(passage))
    return (
        tuple(response),
        tuple(text.sentences(subject.prompt)[:MAX_PROMPT_SENTENCES]),
        tuple(_nearest_by_words(response, list(passages))),
    )


def reading(subject: JudgeInput, vectors: Mapping[str, Vectors]) -> Reading:
    """Bring one subject and the vectors of its texts together."""
    response, prompt, passages = texts_of(subject)
    width = vectors[subject.response].shape[0]

    def rows(parts: Sequence[str]) -> Vectors:
        return np.stack([vectors[part] for part in parts]) if parts else np.zeros((0, width), np.float32)

    return Reading(
        subject=subject,
        sentence_texts=response,
        passage_texts=passages,
        prompt=vectors[subject.prompt],
        response=vectors[subject.response],
        sentences=rows(response),
        asked=rows(prompt),
        passages=rows(passages),
    )


def relevance(of: Reading) -> Relevance:
    """Cosine of the answer and of its best sentence to the prompt; covered content words, weighted by how often the
    prompt uses them; `echo` when the answer only says the prompt again."""
    prompt, response = of.subject.prompt, of.subject.response
    answered = set(text.content_words(response))
    weights = Counter(text.stems(prompt))
    total = sum(count * count for count in weights.values())
    covered = sum(count * count for stem, count in weights.items() if stem in answered)
    fresh = sum(stem not in weights for stem in answered) / max(1, len(answered))
    return Relevance(
        about=float(of.prompt @ of.response),
        best=float((of.sentences @ of.prompt).max()),
        strays=float((_to_prompt(of) < 0.25).mean()),
        coverage=covered / total if total else 1.0,
        repetition=_repetition(response),
        echo=bool(total) and covered / total > 0.85 and fresh < 0.1 and len(weights) > 2,
        missing=tuple(text.missing_words(prompt, response)[:3]),
    )


def coherence(of: Reading) -> Coherence:
    """Repetition, sentences that belong to nothing around them, fragments, and damage."""
    response = of.subject.response
    links = _links(of) if len(of.sentences) > 1 else np.array([LONE_LINK])
    short = [sentence for sentence in of.sentence_texts if len(text.words(sentence)) < 4]
    return Coherence(
        repetition=_repetition(response),
        redundant=float((_nearest_earlier(of) > SAME).mean()),
        weakest_link=float(np.sort(links)[: max(1, len(links) // 4)].mean()),
        links=float(links.mean()),
        fragments=len(short) / len(of.sentence_texts),
        misplaced=text.misplaced_pair_share(response),
        broken=text.non_word_share(response),
        unfinished=text.is_unfinished(response),
        repeated=text.repeated_sentence(of.sentence_texts),
        stray=of.sentence_texts[int(links.argmin())],
    )


def conciseness(of: Reading) -> Conciseness:
    """Length beyond what the prompt leads one to expect, sentences that say an earlier one again, sentences that
    have nothing to do with the prompt, stock phrases."""
    count = len(text.words(of.subject.response))
    _, too_many = text.wanted_words(of.subject.prompt)
    earlier = _nearest_earlier(of)
    worst = int(earlier.argmax())
    redundant = float((earlier > SAME).mean())
    return Conciseness(
        words=count,
        expected=too_many,
        excess=max(0.0, float(np.log(count / too_many))),
        redundant=redundant,
        off_topic=float(1 - (of.sentences @ of.prompt).mean()),
        repetition=_repetition(of.subject.response),
        filler=tuple(text.filler_phrases(of.subject.response)),
        pair=(int((of.sentences[:worst] @ of.sentences[worst]).argmax()), worst) if redundant else None,
    )


def faithfulness(of: Reading) -> Faithfulness:
    """Word pairs found in the context; for each sentence the cosine to its nearest passage sentence and the share of
    its content words found in the context."""
    context = "\n".join(of.subject.context)
    nearest = (of.sentences @ of.passages.T).max(axis=1)
    lexical = np.array(text.support_shares(of.sentence_texts, context))
    support = (nearest + lexical) / 2
    return Faithfulness(
        shared_pairs=text.shared_pair_share(text.prose(of.subject.response), context),
        nearest=float(nearest.mean()),
        lexical=float(lexical.mean()),
        weakest=float(support.min()),
        unsupported=of.sentence_texts[int(support.argmin())],
    )


def _nearest_by_words(response: Sequence[str], passages: Sequence[str]) -> list[str]:
    """The passages that share most content words with each sentence, taken in rounds (each sentence's best, then each
    one's second best …) up to the limit; in the passages' order."""
    if len(passages) <= MAX_PASSAGES:
        return list(passages)
    held = [set(text.stems(passage)) for passage in passages]
    rankings = []
    for sentence in response:
        wanted = set(text.stems(sentence))
        rankings.append(sorted(range(len(passages)), key=lambda place: -len(wanted & held[place])))
    chosen: dict[int, None] = {}
    for places in zip(*rankings, strict=True):
        chosen.update(dict.fromkeys(places[: MAX_PASSAGES - len(chosen)]))
        if len(chosen) >= MAX_PASSAGES:
            break
    return [passages[place] for place in sorted(chosen or range(MAX_PASSAGES))]


def _repetition(response: str) -> float:
    return text.repeated_pair_share(response) + text.stutter_share(response)


def _nearest_earlier(of: Reading) -> Vectors:
    """For each sentence the highest cosine to an earlier one; 0 for the first."""
    return np.asarray(np.tril(of.sentences @ of.sentences.T, -1).max(axis=1))


def _to_prompt(of: Reading) -> Vectors:
    """For each sentence the highest cosine to the prompt or to a sentence of it."""
    whole = (of.sentences @ of.prompt)[:, None]
    return np.asarray(np.concatenate([whole, of.sentences @ of.asked.T], axis=1).max(axis=1))


def _links(of: Reading) -> Vectors:
    """For each sentence the highest cosine to the prompt, to a sentence of the prompt, or to another sentence.

    A later sentence that opens with a word that points back ("this", "however") gets at least the middle value: its
    link is in the word, which embeddings of single sentences do not see.
    """
    others = of.sentences @ of.sentences.T
    np.fill_diagonal(others, -1.0)
    refers = np.array([text.refers_back(sentence) for sentence in of.sentence_texts])
    refers[0] = False
    nearest = np.maximum(others.max(axis=1), _to_prompt(of))
    return np.asarray(np.where(refers, np.maximum(nearest, LONE_LINK), nearest))
