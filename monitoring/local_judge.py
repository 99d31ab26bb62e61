"""The local judge: scores every answer without a language model, from embeddings and what can be counted in text.

Each criterion is 1 + 4 / (1 + exp(-z)), a real number between 1 and 5, where z adds the measures of
`local_measures` with the fixed weights below; every term is monotone in its measure. The weights were set by hand from
non-negative least squares on the development part of public ratings (SummEval, LLM-Rubric, MT-RAG), the intercepts so
that ordinary good answers land near 4 and gross failures near 1. docs/judges.md shows the agreement with people and
why no part of that data counts as untouched. It catches gross failures; between two decent answers it is weak.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from infra.embedder import Embedder
from infra.errors import QuillError
from monitoring import local_measures as measures
from monitoring.local_measures import Reading
from monitoring.text_features import is_refusal, prose, sentences, words
from streams.events import CRITERIA, Criterion, Score, Unscored, Verdict
from streams.protocols import JudgeInput, Judgement

VERSION = 1
MIN_WORDS = 3


class LocalJudge:
    """Implements `streams.protocols.Judge` over an embedder; needs no network and loads nothing until it judges."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def id(self) -> str:
        """`local-judge@<version>+<embedder>`: either change may change verdicts."""
        return f"local-judge@{VERSION}+{self._embedder.id}"

    @property
    def model(self) -> str:
        """Empty: no language model is behind this judge."""
        return ""

    def judge(self, subjects: Sequence[JudgeInput]) -> list[Judgement]:
        """One judgement per subject; all texts of the batch go to the embedder in one call.

        Faithfulness is judged where there is context. Abstains with a reason for empty, non-textual and too short
        answers and for refusals.
        """
        started = time.perf_counter()
        reasons = [abstention(subject) for subject in subjects]
        try:
            readings = self._read([subject for subject, reason in zip(subjects, reasons, strict=True) if not reason])
        except QuillError as error:
            reasons = [f"the embedder failed: {error}"] * len(subjects)
            readings = iter(())
        scores = [_unscored(s, r) if r else _scores(next(readings)) for s, r in zip(subjects, reasons, strict=True)]
        spent = (time.perf_counter() - started) * 1000 / max(1, len(subjects))
        return [Judgement(judge=self.id, scores=score, latency_ms=spent) for score in scores]

    def _read(self, subjects: Sequence[JudgeInput]) -> Iterator[Reading]:
        texts: dict[str, None] = {}
        for subject in subjects:
            texts.update(dict.fromkeys((subject.prompt, subject.response)))
            for part in measures.texts_of(subject):
                texts.update(dict.fromkeys(part))
        vectors = dict(zip(texts, self._embedder.embed(list(texts)), strict=True)) if texts else {}
        return iter([measures.reading(subject, vectors) for subject in subjects])


def abstention(subject: JudgeInput) -> str:
    """Why an answer cannot be judged from its text alone, or '' when it can."""
    text = subject.response.strip()
    if not text:
        return "empty response"
    if is_refusal(text):
        return "refused"
    body = prose(text)
    if not body:
        return "nothing but code"
    letters = [character for character in body if not character.isspace()]
    if sum(character.isalnum() for character in letters) < 0.5 * len(letters):
        return "not text"
    if sum(character.isalpha() and not character.isascii() for character in letters) > 0.3 * len(letters):
        return "not written in the Latin alphabet"
    if len(words(body)) < MIN_WORDS or not sentences(body):
        return f"too short: fewer than {MIN_WORDS} words"
    return ""


def relevance(of: Reading) -> Verdict:
    """z = 5 (topic - 0.4) + 1.5 (coverage - 0.5) - 0.7 strays - 3 repetition - 6 echo.

    The topic is the cosine of the answer to the prompt, or that of its best sentence less 0.1 when that is more.
    """
    m = measures.relevance(of)
    topic = max(m.about, m.best - 0.1)
    z = 5 * (topic - 0.4) + 1.5 * (m.coverage - 0.5) - 0.7 * m.strays - 3 * m.repetition - 6 * m.echo
    if m.echo:
        why = "It says the request again instead of answering it"
    elif topic < 0.25:
        why = f"It is about something else: cosine {topic:.2f} to the request"
    elif m.missing and m.coverage < 0.7:
        why = f"Cosine {topic:.2f} to the request; not addressed: {', '.join(m.missing)}"
    else:
        why = f"Cosine {topic:.2f} to the request and {m.coverage:.0%} of its content words addressed"
    return _verdict("relevance", z, why)


def coherence(of: Reading) -> Verdict:
    """z = 2 + 3.5 (weakest link - 0.4) - 8 links below 0.5 - 5.5 repetition - 3 redundant - 2 fragments
    - 25 misplaced - 12 broken - 1.5 unfinished - 1 repeated sentence."""
    m = measures.coherence(of)
    damage = 25 * m.misplaced + 12 * m.broken + 1.5 * m.unfinished + 2 * m.fragments
    repeats = 5.5 * m.repetition + 3 * m.redundant + (m.repeated is not None)
    z = 2 + 3.5 * (m.weakest_link - 0.4) - 8 * max(0.0, 0.5 - m.links) - repeats - damage
    if m.repeated is not None:
        why = f"It repeats the sentence {quoted(m.repeated)}"
    elif m.broken > 0.1 or m.misplaced > 0.04:
        why = "Words are broken or out of order"
    elif m.repetition > 0.2:
        why = f"{m.repetition:.0%} of its word pairs repeat shortly before"
    elif m.unfinished:
        why = f"It stops in mid sentence: {quoted(of.sentence_texts[-1], tail=True)}"
    elif m.weakest_link < 0.3:
        why = f"A sentence stands apart from the rest: {quoted(m.stray)}"
    else:
        count = len(of.sentence_texts)
        connected = f"Its {count} sentences connect (mean cosine {m.links:.2f})" if count > 1 else "One whole sentence"
        why = f"{connected} without repetition" if m.repetition < 0.1 else f"{connected} with some repetition"
    return _verdict("coherence", z, why)


def conciseness(of: Reading) -> Verdict:
    """z = 2 - 1.5 log excess length - 2.5 redundant sentences - 1.6 (off topic - 0.5) - 0.4 filler phrases (up to 4)
    - 3 repetition above 0.1."""
    m = measures.conciseness(of)
    repetition = max(0.0, m.repetition - 0.1)
    padding = 0.4 * min(4, len(m.filler)) + 1.6 * (m.off_topic - 0.5)
    z = 2 - 1.5 * m.excess - 2.5 * m.redundant - padding - 3 * repetition
    if m.pair is not None:
        why = f"Sentence {m.pair[1] + 1} says sentence {m.pair[0] + 1} again: {quoted(of.sentence_texts[m.pair[1]])}"
    elif m.excess > 0.2:
        why = f"{m.words} words where about {m.expected} would do"
    elif m.filler:
        why = f"It spends words on stock phrases: {', '.join(m.filler[:2])}"
    elif repetition > 0.1:
        why = "It repeats the same word pairs"
    else:
        why = f"{m.words} words, no sentence says another again"
    return _verdict("conciseness", z, why)


def faithfulness(of: Reading) -> Verdict:
    """z = 4 (nearest - 0.55) + 3 (lexical - 0.6) + 1 (shared pairs - 0.4) + 1.5 (weakest - 0.5)."""
    m = measures.faithfulness(of)
    z = 4 * (m.nearest - 0.55) + 3 * (m.lexical - 0.6) + (m.shared_pairs - 0.4) + 1.5 * (m.weakest - 0.5)
    if m.weakest < 0.5:
        why = f"The context supports this sentence least ({m.weakest:.2f}): {quoted(m.unsupported)}"
    else:
        why = f"{m.lexical:.0%} of its content words stand in the context, nearest cosine {m.nearest:.2f}"
    return _verdict("faithfulness", z, why)


def quoted(sentence: str, *, tail: bool = False, limit: int = 70) -> str:
    """A sentence in quotes, shortened at a word to about `limit` characters (from its end with `tail`)."""
    if len(sentence) > limit:
        sentence = "…" + sentence[-limit:].partition(" ")[2] if tail else sentence[:limit].rpartition(" ")[0] + "…"
    return f"“{sentence}”"


def _verdict(criterion: Criterion, z: float, why: str) -> Verdict:
    score = 1 + 4 / (1 + math.exp(-max(-30.0, min(30.0, z))))
    return Verdict(criterion=criterion, score=round(score, 3), justification=why + ".")


def _criteria(subject: JudgeInput) -> tuple[Criterion, ...]:
    return (*CRITERIA, "faithfulness") if subject.context else CRITERIA


def _unscored(subject: JudgeInput, reason: str) -> tuple[Score, ...]:
    return tuple(Unscored(criterion=criterion, reason=reason) for criterion in _criteria(subject))


def _scores(of: Reading) -> tuple[Score, ...]:
    verdicts = (relevance(of), coherence(of), conciseness(of))
    if len(of.passages):
        return (*verdicts, faithfulness(of))
    empty = Unscored(criterion="faithfulness", reason="the context holds no text")
    return (*verdicts, empty) if of.subject.context else verdicts
