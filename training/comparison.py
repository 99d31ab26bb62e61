"""Paired comparison of contenders on the same requests, blind to names and order.

Every contender answers every request; judges get the texts shuffled and without names. Differences are paired by
request and carry intervals; an interval that contains zero leaves a challenger undecided, which keeps the default.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from infra.artifacts import Artifacts, Manifest
from infra.errors import InputError
from infra.identity import Value, content_id, short
from streams.events import InteractionRecorded
from streams.protocols import Answerer, AnswerRequest, Judge, JudgeInput
from training.contest import Decision, Entry, Gap, Measure, common_scores, decide, entry_of, means
from training.paired import Difference, difference

LAYOUT = 1

OnProgress = Callable[[int, int, str], None]
"""Done, in all, what."""
Recorded = Callable[[str], InteractionRecorded | None]
"""The interaction with an id, when it was answered before."""


class Preferred(Protocol):
    """Which of two texts a judge prefers."""

    @property
    def winner(self) -> Literal["first", "second", "tie"]: ...

    @property
    def reason(self) -> str: ...


class PairwiseJudge(Protocol):
    """Compares two answers to one prompt; a judge that asks in both orders calls an inconsistent pair a tie."""

    @property
    def id(self) -> str: ...

    @property
    def model(self) -> str: ...

    def prefer(self, prompt: str, first: str, second: str) -> Preferred: ...


class Adapted(Value):
    """What training measured for a contender that uses an adapter."""

    base: str = Field(description="Name of the contender that is the same model without the adapter; '' if none is.")
    heldout_change: Difference = Field(description="Held-out loss with minus without the adapter, paired by row.")
    promotable: bool = Field(description="The serving proof holds, discriminates, and the effect is measurable.")
    verdict: str = Field(description="The proof's conclusion in words.")


def adapted(adapter: Manifest, base: str) -> Adapted:
    """What an adapter's manifest says for the comparison; `base` names the contender without the adapter, or ''."""
    change = Difference.model_validate(adapter.summary["heldout_change"])
    summary = adapter.summary
    return Adapted(
        base=base, heldout_change=change, promotable=bool(summary["promotable"]), verdict=str(summary["verdict"])
    )


def compare(
    contenders: Mapping[str, Answerer],
    requests: Sequence[AnswerRequest],
    *,
    releases: Mapping[str, str],
    default: str,
    judge: Judge,
    artifacts: Artifacts,
    pairwise: PairwiseJudge | None = None,
    adapters: Mapping[str, Adapted] | None = None,
    recorded: Recorded | None = None,
    seed: int = 7,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The comparison of these contenders (kind "comparison"): the stored one, or a new one.

    `releases` gives each contender's release id: with the request it makes the interaction id, so that `recorded`
    finds answers of an interrupted run. The summary's `winner` is the contender to promote: the default unless one
    challenger is decided to be better. Raises `InputError` for an unknown default, no challenger or no request.
    """
    _check(contenders, releases, default, requests)
    inputs: dict[str, Any] = {
        "releases": dict(releases),
        "default": default,
        "requests": [_asked(request) for request in requests],
        "judge": judge.id,
        "pairwise": pairwise.id if pairwise else "",
        "adapters": {name: value.model_dump() for name, value in (adapters or {}).items()},
        "seed": seed,
        "layout": LAYOUT,
    }
    contest = _Contest(contenders, requests, judge, pairwise, adapters or {}, default)

    def fill(directory: Path) -> dict[str, Any]:
        entries = contest.answers(releases, recorded or _never, on_progress or _quiet)
        report = contest.report(contest.judged(entries, seed), seed)
        (directory / "comparison.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
        return {name: value for name, value in report.items() if name != "entries"}

    return artifacts.build("comparison", content_id("comparison", inputs), inputs, fill)


def interaction_id(release_id: str, request: AnswerRequest) -> str:
    """The id under which a release's answer to a request of a comparison is recorded; the same for a rerun."""
    return "compare-" + short(content_id("comparison-answer", [release_id, _asked(request)]), 24)


class _Contest:
    def __init__(
        self,
        contenders: Mapping[str, Answerer],
        requests: Sequence[AnswerRequest],
        judge: Judge,
        pairwise: PairwiseJudge | None,
        adapters: Mapping[str, Adapted],
        default: str,
    ) -> None:
        self._contenders, self._requests = contenders, requests
        self._judge, self._pairwise = judge, pairwise
        self._adapters, self._default = adapters, default

    def answers(self, releases: Mapping[str, str], recorded: Recorded, tell: OnProgress) -> list[Entry]:
        """Every contender's answer to every request; those recorded before are not asked again."""
        entries: list[Entry] = []
        total = len(self._contenders) * len(self._requests)
        for name, answerer in self._contenders.items():
            for number, request in enumerate(self._requests):
                identity = interaction_id(releases[name], request)
                known = recorded(identity)
                asked = request.model_copy(update={"interaction_id": identity, "tags": request.tags | _TAGS})
                entries.append(entry_of(name, number, known or answerer.answer(asked)))
                tell(len(entries), total, "answers")
        return entries

    def judged(self, entries: Sequence[Entry], seed: int) -> list[Entry]:
        """The entries with the judge's scores; it sees them shuffled, as prompt, answer and context only."""
        shuffled = list(entries)
        random.Random(seed).shuffle(shuffled)
        subjects = [
            JudgeInput(prompt=self._requests[entry.request].question, response=entry.text, context=entry.context)
            for entry in shuffled
        ]
        judgements = self._judge.judge(subjects)
        return [entry.judged(said.scores) for entry, said in zip(shuffled, judgements, strict=True)]

    def report(self, entries: Sequence[Entry], seed: int) -> dict[str, Any]:
        """Everything that is known, as JSON values; "entries" holds a line per answer."""
        by_place = {(entry.contender, entry.request): entry for entry in entries}
        challengers = [name for name in self._contenders if name != self._default]
        preferences: list[dict[str, Any]] = []
        gaps = {name: self._gaps(name, self._default, by_place, preferences, seed) for name in challengers}
        decisions = [decide(name, gaps[name], self._barred(name)) for name in challengers]
        aside = [
            gap
            for name, value in self._adapters.items()
            if value.base and value.base != self._default and name != self._default
            for gap in self._gaps(name, value.base, by_place, None, seed)
        ]
        winner, verdict = _verdict(decisions, gaps, self._default)
        return {
            "winner": winner,
            "verdict": verdict,
            "default": self._default,
            "contenders": {name: means([e for e in entries if e.contender == name]) for name in self._contenders},
            "decisions": [decision.model_dump() for decision in decisions],
            "differences": [gap.row() for gap in [*chain.from_iterable(gaps.values()), *aside]],
            "requests": len(self._requests),
            "judge": self._judge.id,
            "same_model_as_writer": any(self._wrote(self._judge.model, entry) for entry in entries)
            or bool(self._pairwise and any(self._wrote(self._pairwise.model, entry) for entry in entries)),
            "entries": {
                "answers": [_line(entry, self._requests) for entry in sorted(entries, key=_place)],
                "preferences": preferences,
            },
        }

    def _gaps(
        self,
        name: str,
        other: str,
        by_place: Mapping[tuple[str, int], Entry],
        preferences: list[dict[str, Any]] | None,
        seed: int,
    ) -> list[Gap]:
        """Every measure of one contender against another. Preferences are asked only where a list collects them."""
        pairs = [(by_place[name, number], by_place[other, number]) for number in range(len(self._requests))]
        adapter = self._adapters.get(name)
        gaps: list[Gap] = []
        if adapter is not None and adapter.base == other:
            loss = adapter.heldout_change
            gaps.append(Gap(measure="held-out loss", contender=name, against=other, difference=loss, decides=True))
        support = [_minus(one.citation_support, two.citation_support) for one, two in pairs]
        gaps.append(self._gap("citation support", name, other, support, decides=True))
        scores = [common_scores(one.scores, two.scores) for one, two in pairs]
        gaps.append(self._gap("judge", name, other, scores, decides=not self._involved(self._judge.model, pairs)))
        if preferences is not None and self._may_prefer(name, pairs):
            said = [self._preference(one, two, preferences, seed) for one, two in pairs]
            gaps.append(self._gap("preference", name, other, said, decides=True))
        return gaps

    def _gap(self, measure: Measure, name: str, other: str, values: Sequence[float | None], *, decides: bool) -> Gap:
        known = [value for value in values if value is not None]
        found = difference(known) if known else None
        return Gap(measure=measure, contender=name, against=other, difference=found, decides=decides)

    def _preference(self, one: Entry, two: Entry, kept: list[dict[str, Any]], seed: int) -> float:
        """1 when the first entry's text is preferred, -1 for the second's, 0 for a tie. Which comes first is drawn."""
        if self._pairwise is None:
            return 0.0
        turned = random.Random(f"{seed}/{one.interaction_id}/{two.interaction_id}").random() < 0.5
        left, right = (two, one) if turned else (one, two)
        said = self._pairwise.prefer(self._requests[one.request].question, left.text, right.text)
        winner = {"first": left.contender, "second": right.contender}.get(said.winner, "tie")
        kept.append(
            {"request": one.request, "first": left.contender, "second": right.contender, "winner": winner}
            | {"reason": said.reason}
        )
        return float((winner == one.contender) - (winner == two.contender))

    def _may_prefer(self, name: str, pairs: Sequence[tuple[Entry, Entry]]) -> bool:
        """Preferences cost two model calls each, so they are asked where they may decide: not of a judge whose model
        wrote one of the answers, and with adapters in the contest only about these."""
        if self._pairwise is None or self._involved(self._pairwise.model, pairs):
            return False
        return name in self._adapters or not self._adapters

    def _barred(self, name: str) -> str:
        adapter = self._adapters.get(name)
        if adapter is None:
            return ""
        if not adapter.promotable:
            return adapter.verdict
        return "" if adapter.heldout_change.decided < 0 else "the adapter does not lower the held-out loss"

    def _involved(self, model: str, pairs: Sequence[tuple[Entry, Entry]]) -> bool:
        return any(self._wrote(model, entry) for pair in pairs for entry in pair)

    def _wrote(self, model: str, entry: Entry) -> bool:
        return bool(model) and model.partition("+")[0] == entry.model.partition("+")[0]


_TAGS = {"stage": "comparison"}


def _verdict(decisions: Sequence[Decision], gaps: Mapping[str, Sequence[Gap]], default: str) -> tuple[str, str]:
    better = [decision for decision in decisions if decision.outcome == "better"]
    if not better:
        said = "; ".join(f"{one.contender} {one.outcome} ({one.reason})" for one in decisions)
        return default, f"{default} stays: {said}"
    best = max(better, key=lambda decision: _support(gaps[decision.contender]))
    return best.contender, f"{best.contender} is better than {default} ({best.reason})"


def _support(gaps: Sequence[Gap]) -> float:
    """Between two winners the one with more citation support goes first."""
    found = [gap.difference.mean for gap in gaps if gap.measure == "citation support" and gap.difference]
    return found[0] if found else 0.0


def _check(
    contenders: Mapping[str, Answerer], releases: Mapping[str, str], default: str, requests: Sequence[AnswerRequest]
) -> None:
    if default not in contenders or len(contenders) < 2 or set(releases) != set(contenders):
        raise InputError(
            "a comparison needs a default, a challenger, and a release id of each",
            seen=f"default {default}, contenders {', '.join(contenders)}, releases of {', '.join(releases)}",
        )
    if not requests:
        raise InputError("a comparison needs at least one request")


def _asked(request: AnswerRequest) -> dict[str, Any]:
    return request.model_dump(mode="json", include={"question", "messages", "max_tokens"})


def _line(entry: Entry, requests: Sequence[AnswerRequest]) -> dict[str, Any]:
    return {
        "question": requests[entry.request].question,
        **entry.model_dump(mode="json", exclude={"context"}),
        "citation_support": entry.citation_support,
    }


def _place(entry: Entry) -> tuple[int, str]:
    return entry.request, entry.contender


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _never(identity: str) -> InteractionRecorded | None:
    """Nothing is recorded."""


def _quiet(done: int, total: int, note: str) -> None:
    """Nobody listens."""
