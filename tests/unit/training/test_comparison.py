"""Contenders are compared on equal terms: blind, paired, with intervals, undecided keeps the default."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.artifacts import Artifacts
from infra.errors import InputError
from streams.events import Citation, InteractionRecorded, ReleaseRef, Unscored, Usage, Verdict
from streams.protocols import Answer, AnswerRequest, JudgeInput, Judgement
from training.comparison import Adapted, adapted, compare, interaction_id
from training.paired import Difference

REQUESTS = [AnswerRequest(question=f"How does part {n} work?") for n in range(8)]
RELEASES = {"small": "sha256:a", "small+adapter": "sha256:b", "large": "sha256:c"}
BETTER = Difference(mean=-0.3, low=-0.4, high=-0.2, pairs=12, method="bootstrap")


class Writer:
    """Answers with a share of supported sentences."""

    def __init__(self, model: str, supported: Callable[[int], int], of: int = 4, refuse: bool = False) -> None:
        self.model, self.supported, self.of, self.refuse = model, supported, of, refuse
        self.asked: list[AnswerRequest] = []

    def answer(self, request: AnswerRequest, on_text: object = None) -> Answer:
        number = len(self.asked)
        self.asked.append(request)
        good = self.supported(number)
        return Answer(
            interaction_id=request.interaction_id,
            text=f"{self.model} says {number}",
            citations=tuple(citation(n) for n in range(good)),
            unsupported=tuple(f"claim {n}" for n in range(self.of - good)),
            chunks=(),
            refused=self.refuse,
            release=ReleaseRef(release_id="sha256:x", prompt="p@1", model=self.model),
            usage=Usage(),
            latency_ms=1.0,
        )


class PlainJudge:
    """Gives every text the score its writer's name is worth."""

    id = "plain@1"

    def __init__(self, worth: dict[str, float], model: str = "") -> None:
        self.worth, self.model = worth, model
        self.seen: list[JudgeInput] = []

    def judge(self, subjects: Sequence[JudgeInput]) -> list[Judgement]:
        self.seen += subjects
        return [Judgement(judge=self.id, scores=self._scores(subject)) for subject in subjects]

    def _scores(self, subject: JudgeInput):
        score = self.worth[subject.response.split()[0]] + len(subject.prompt) % 2 * 0.1
        return (
            Verdict(criterion="relevance", score=score, justification="Because."),
            Unscored(criterion="coherence", reason="too short"),
        )


class Pairwise:
    """Prefers the text that begins with `favourite`, or ties."""

    id = "pairwise@1"

    def __init__(self, favourite: str = "", model: str = "referee") -> None:
        self.favourite, self.model = favourite, model
        self.shown: list[tuple[str, str]] = []

    def prefer(self, prompt: str, first: str, second: str):
        self.shown.append((first, second))
        hits = [bool(self.favourite) and text.startswith(self.favourite) for text in (first, second)]
        return SimpleNamespace(
            winner={(1, 0): "first", (0, 1): "second"}.get(tuple(map(int, hits)), "tie"), reason="so"
        )


def citation(number: int) -> Citation:
    return Citation(marker=1, chunk_id="sha256:1", source="s", quote="q", sentence=f"s{number}", support=1.0)


def contenders(small: int = 2, adapter: int = 2, large: int = 2) -> dict[str, Writer]:
    """Each with so many supported sentences of four, varied a little from request to request in the same way."""
    return {
        "small": Writer("mini", lambda n: small + n % 2),
        "small+adapter": Writer("mini", lambda n: adapter + n % 2),
        "large": Writer("maxi", lambda n: large + n % 2),
    }


def run(tmp_path: Path, writers: dict[str, Writer], **settings: object):
    given: dict = {
        "releases": RELEASES,
        "default": "large",
        "judge": PlainJudge({"mini": 3.0, "maxi": 3.0}),
        "artifacts": Artifacts(tmp_path),
        "adapters": {"small+adapter": Adapted(base="small", heldout_change=BETTER, promotable=True, verdict="fine")},
    }
    return compare(writers, REQUESTS, **(given | settings))


def outcome(manifest, name: str) -> str:
    return next(one["outcome"] for one in manifest.summary["decisions"] if one["contender"] == name)


def test_more_citation_support_wins_and_less_loses(tmp_path: Path):
    manifest = run(tmp_path, contenders(small=1, adapter=3, large=2))
    assert manifest.summary["winner"] == "small+adapter"
    assert "citation support" in manifest.summary["verdict"]
    assert outcome(manifest, "small") == "worse"
    support = {
        (row["contender"], row["default"]): row
        for row in manifest.summary["differences"]
        if row["measure"] == "citation support"
    }
    assert support["small+adapter", "large"]["difference"] == pytest.approx(0.25)
    assert support["small+adapter", "small"]["pairs"] == len(REQUESTS)


def test_equal_contenders_are_undecided_and_the_default_stays(tmp_path: Path):
    manifest = run(tmp_path, contenders())
    assert manifest.summary["winner"] == "large"
    assert manifest.summary["verdict"].startswith("large stays")
    assert {outcome(manifest, name) for name in ("small", "small+adapter")} == {"undecided"}


def test_a_lower_loss_decides_against_the_adapters_own_base(tmp_path: Path):
    manifest = run(tmp_path, contenders(), default="small")
    assert outcome(manifest, "small+adapter") == "better"
    contradiction = run(tmp_path / "other", contenders(adapter=0), default="small")
    assert outcome(contradiction, "small+adapter") == "undecided"
    assert "contradict" in contradiction.summary["verdict"]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (
            Adapted(base="small", heldout_change=BETTER, promotable=False, verdict="no measurable effect"),
            "no measurable",
        ),
        (
            Adapted(
                base="small", heldout_change=BETTER.model_copy(update={"high": 0.1}), promotable=True, verdict="fine"
            ),
            "does not lower",
        ),
    ],
)
def test_an_unproven_adapter_is_barred_however_good_its_answers(tmp_path: Path, known: Adapted, reason: str):
    manifest = run(tmp_path, contenders(adapter=3), adapters={"small+adapter": known})
    assert manifest.summary["winner"] == "large"
    assert outcome(manifest, "small+adapter") == "barred"
    assert reason in manifest.summary["verdict"]


def test_a_judge_decides_only_when_its_model_wrote_neither_answer(tmp_path: Path):
    worth = {"mini": 4.5, "maxi": 2.0}
    free = run(tmp_path, contenders(), judge=PlainJudge(worth))
    assert free.summary["winner"] in ("small", "small+adapter")
    assert free.summary["same_model_as_writer"] is False
    biased = PlainJudge(worth, model="maxi")
    biased.id = "biased@1"
    involved = run(tmp_path, contenders(), judge=biased)
    assert involved.summary["winner"] == "large"
    assert involved.summary["same_model_as_writer"] is True
    assert any(row["measure"] == "judge" and row["decides"] is False for row in involved.summary["differences"])


def test_judges_see_no_names_and_no_order(tmp_path: Path):
    judge, pairwise = PlainJudge({"mini": 3.0, "maxi": 3.0}), Pairwise()
    run(tmp_path, contenders(), judge=judge, pairwise=pairwise)
    assert len(judge.seen) == 24
    grouped = [subject.response.split()[0] for subject in judge.seen]
    assert grouped != sorted(grouped)
    assert grouped != sorted(grouped, reverse=True)
    assert not any(name in str(subject) for subject in judge.seen for name in ("small+adapter", "large", "contender"))
    assert 0 < sum(first.startswith("maxi") for first, _ in pairwise.shown) < len(pairwise.shown) == 8


def test_preferences_count_from_the_challengers_side(tmp_path: Path):
    manifest = run(tmp_path, contenders(), pairwise=Pairwise("mini"))
    rows = [row for row in manifest.summary["differences"] if row["measure"] == "preference"]
    assert [(row["contender"], row["difference"]) for row in rows] == [("small+adapter", 1.0)]
    report = json.loads((Artifacts(tmp_path).path("comparison", manifest.id) / "comparison.json").read_text())
    assert {one["winner"] for one in report["entries"]["preferences"]} == {"small+adapter"}
    assert len(report["entries"]["answers"]) == 24
    assert report["entries"]["answers"][0]["question"] == REQUESTS[0].question


def test_a_judge_is_not_asked_to_prefer_where_its_model_wrote_an_answer(tmp_path: Path):
    pairwise = Pairwise("mini", model="maxi")
    manifest = run(tmp_path, contenders(), pairwise=pairwise)
    assert pairwise.shown == []
    assert not any(row["measure"] == "preference" for row in manifest.summary["differences"])
    assert manifest.summary["same_model_as_writer"] is True


def test_without_adapters_preferences_are_asked_about_every_challenger(tmp_path: Path):
    manifest = run(tmp_path, contenders(), pairwise=Pairwise("mini"), adapters={})
    rows = [row for row in manifest.summary["differences"] if row["measure"] == "preference"]
    assert [row["contender"] for row in rows] == ["small", "small+adapter"]


def test_a_rerun_asks_nobody_and_an_interrupted_run_asks_only_the_rest(tmp_path: Path):
    first = contenders()
    manifest = run(tmp_path, first)
    again = contenders()
    assert run(tmp_path, again) == manifest
    assert [len(writer.asked) for writer in again.values()] == [0, 0, 0]

    kept = {identity: recorded(identity) for identity in (interaction_id("sha256:a", one) for one in REQUESTS)}
    rest = contenders()
    run(tmp_path / "other", rest, recorded=kept.get, judge=PlainJudge({"mini": 3.0, "maxi": 3.0, "stored": 3.0}))
    assert [len(writer.asked) for writer in rest.values()] == [0, 8, 8]
    assert all(request.interaction_id.startswith("compare-") for request in rest["large"].asked)
    assert len({request.interaction_id for writer in rest.values() for request in writer.asked}) == 16


def test_refusals_have_no_citation_support(tmp_path: Path):
    writers = contenders() | {"large": Writer("maxi", lambda n: 0, refuse=True)}
    manifest = run(tmp_path, writers)
    against = [
        row
        for row in manifest.summary["differences"]
        if row["measure"] == "citation support" and row["default"] == "large"
    ]
    assert [(row["difference"], row["pairs"]) for row in against] == [(None, 0), (None, 0)]
    assert manifest.summary["contenders"]["large"]["refused"] == 8


def test_a_comparison_needs_a_default_a_challenger_and_requests(tmp_path: Path):
    with pytest.raises(InputError, match="needs a default"):
        run(tmp_path, contenders(), default="nobody")
    with pytest.raises(InputError, match="at least one request"):
        compare(
            contenders(), [], releases=RELEASES, default="large", judge=PlainJudge({}), artifacts=Artifacts(tmp_path)
        )


def test_an_adapters_manifest_says_what_the_comparison_needs():
    manifest = SimpleNamespace(summary={"heldout_change": BETTER.model_dump(), "promotable": True, "verdict": "fine"})
    assert adapted(manifest, "small") == Adapted(base="small", heldout_change=BETTER, promotable=True, verdict="fine")


def recorded(identity: str) -> InteractionRecorded:
    return InteractionRecorded(
        interaction_id=identity,
        conversation_id=identity,
        prompt="?",
        response="stored answer",
        finish_reason="stop",
        release=ReleaseRef(release_id="sha256:a", prompt="p@1", model="mini"),
        citations=(citation(0), citation(1)),
        unsupported=("c",),
    )
