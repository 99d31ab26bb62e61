"""One answer of one contender, measured; and how measures decide between a challenger and the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from infra.identity import Value
from streams.events import Criterion, InteractionRecorded, Score, Verdict
from streams.protocols import Answer
from training.paired import Difference

Measure = Literal["held-out loss", "citation support", "judge", "preference"]
FIRST: tuple[Measure, ...] = ("held-out loss", "citation support")
"""What decides first: facts that no model judged."""
SECOND: tuple[Measure, ...] = ("judge", "preference")
"""What decides when those do not, unless the judging model also wrote one of the two answers."""


class Entry(Value):
    """What one contender answered to one request."""

    contender: str = Field(description="Name of the contender; no judge sees it.")
    request: int = Field(ge=0, description="Number of the request.")
    interaction_id: str = Field(description="Under which it is recorded.")
    model: str = Field(description="Model that wrote it, without its adapter.")
    text: str = Field(description="The answer.")
    refused: bool = Field(description="The answer is that it is not in the sources.")
    context: tuple[str, ...] = Field(description="Retrieved texts, for the judge.")
    supported: int = Field(ge=0, description="Sentences with a checked citation.")
    unsupported: int = Field(ge=0, description="Claims that no retrieved passage supports.")
    scores: dict[Criterion, float] = Field(default_factory=dict, description="The judge's verdicts, 1 to 5.")
    unscored: dict[Criterion, str] = Field(default_factory=dict, description="Criteria not judged, and why.")

    @property
    def citation_support(self) -> float | None:
        """Supported sentences as a share of all claims, 0 to 1; None for a refusal or a text without claims."""
        claims = self.supported + self.unsupported
        return None if self.refused or not claims else self.supported / claims

    def judged(self, scores: Sequence[Score]) -> Entry:
        """This entry with a judge's scores."""
        verdicts = {score.criterion: score.score for score in scores if isinstance(score, Verdict)}
        missing = {score.criterion: score.reason for score in scores if not isinstance(score, Verdict)}
        return self.model_copy(update={"scores": verdicts, "unscored": missing})


def entry_of(contender: str, request: int, answer: Answer | InteractionRecorded) -> Entry:
    """The entry of an answer, fresh or read back from the store."""
    if isinstance(answer, InteractionRecorded):
        text, refused, context = answer.response, answer.finish_reason == "refused", answer.context
    else:
        text, refused, context = answer.text, answer.refused, tuple(chunk.text for chunk in answer.chunks)
    return Entry(
        contender=contender,
        request=request,
        interaction_id=answer.interaction_id,
        model=answer.release.model if answer.release else "",
        text=text,
        refused=refused,
        context=context,
        supported=len({citation.sentence for citation in answer.citations}),
        unsupported=len(answer.unsupported),
    )


class Gap(Value):
    """One measure of a contender against another, over the requests both have a value for."""

    measure: Measure = Field(description="What was measured; for the loss lower is better, for the rest higher.")
    contender: str = Field(description="Name of the challenger.")
    against: str = Field(description="Name of the contender it is compared with.")
    difference: Difference | None = Field(description="Challenger minus the other; None without a common pair.")
    decides: bool = Field(description="May decide: False where the judging model wrote one of the two answers.")

    @property
    def favours(self) -> int:
        """1 for the challenger, -1 for the other, 0 when the interval contains zero or the measure may not decide."""
        if self.difference is None or not self.decides:
            return 0
        return -self.difference.decided if self.measure == "held-out loss" else self.difference.decided

    def row(self) -> dict[str, Any]:
        """A line of the report; figures are None where there are none."""
        found = self.difference
        return {
            "measure": self.measure,
            "contender": self.contender,
            "default": self.against,
            "difference": found.mean if found else None,
            "low": found.low if found else None,
            "high": found.high if found else None,
            "pairs": found.pairs if found else 0,
            "decides": self.decides,
        }


class Decision(Value):
    """What follows for one challenger."""

    contender: str = Field(description="Name of the challenger.")
    outcome: Literal["better", "worse", "undecided", "barred"] = Field(description="Only 'better' may be promoted.")
    reason: str = Field(description="Which measures said so.")


def decide(contender: str, gaps: Sequence[Gap], barred: str = "") -> Decision:
    """The outcome for a challenger from its gaps to the default.

    A group of measures decides when at least one interval lies on one side of zero and none on the other; the first
    group is asked first. `barred`, a reason, keeps a challenger from winning whatever the measures say.
    """
    if barred:
        return Decision(contender=contender, outcome="barred", reason=barred)
    for measures in (FIRST, SECOND):
        said = {gap.measure: gap.favours for gap in gaps if gap.measure in measures and gap.favours}
        signs = set(said.values())
        if len(signs) > 1:
            return Decision(contender=contender, outcome="undecided", reason="the measures contradict each other")
        if signs:
            outcome: Literal["better", "worse"] = "better" if signs == {1} else "worse"
            return Decision(contender=contender, outcome=outcome, reason=" and ".join(sorted(said)))
    return Decision(contender=contender, outcome="undecided", reason="no interval lies on one side of zero")


def means(entries: Sequence[Entry]) -> dict[str, Any]:
    """The plain means of one contender, each with the number of answers behind it."""
    support = [entry.citation_support for entry in entries if entry.citation_support is not None]
    scores = [sum(entry.scores.values()) / len(entry.scores) for entry in entries if entry.scores]
    return {
        "answers": len(entries),
        "refused": sum(entry.refused for entry in entries),
        "citation_support": _mean(support),
        "citation_support_of": len(support),
        "judge": _mean(scores),
        "judged": len(scores),
    }


def common_scores(first: Mapping[Criterion, float], second: Mapping[Criterion, float]) -> float | None:
    """Mean difference first minus second over the criteria judged in both; None without one."""
    shared = [criterion for criterion in first if criterion in second]
    return sum(first[name] - second[name] for name in shared) / len(shared) if shared else None


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
