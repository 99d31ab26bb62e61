"""The local judge: abstentions, evidence in its sentences, and gross failures told from good answers."""

from __future__ import annotations

import pytest

from infra.embedder import HashEmbedder, open_embedder
from infra.errors import Unavailable
from infra.settings import load_settings
from monitoring.local_judge import LocalJudge
from streams.events import Unscored, Verdict
from streams.protocols import JudgeInput

QUERY = (
    "Could you please draft a LinkedIn post discussing Vector Databases? "
    "I'm particularly interested in how do they work."
)
GOOD = (
    "Vector databases store embeddings, lists of numbers that capture meaning. When you ask a question, it is embedded "
    "too and the database finds the nearest vectors with an approximate index such as HNSW. That is how they work so "
    "fast even with millions of items. Teams use them for semantic search and retrieval-augmented generation."
)
OFF_TOPIC = (
    "The soup needs two onions and a carrot. Fry them in butter. Add water and simmer for an hour. Serve it hot."
)
SCATTERED = (
    "Penguins swim. The stock market fell on Tuesday after a report. My grandmother liked purple hats. "
    "Quantum chromodynamics describes quarks. Please pass the salt."
)
GIBBERISH = "asdkj qwlekj zxcmn qpwoe lkjsdf zxc mnbv qwrtp sdfghj zxcvbn. Lkj sdf wrt xcv hjklm."


def judged(judge, response, prompt=QUERY, context=()):
    scores = judge.judge([JudgeInput(prompt=prompt, response=response, context=context)])[0].scores
    return {score.criterion: score for score in scores}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "empty response"),
        ("  \n", "empty response"),
        ("This is not in the sources.", "refused"),
        ("4", "too short"),
        ("```python\nprint(1)\n```", "nothing but code"),
        ("§§ %% && ## (( )) == ++ //", "not text"),
        ("向量数据库存储嵌入并返回最近的向量。", "not written in the Latin alphabet"),
    ],
)
def test_abstains_with_the_reason(response, reason):
    scores = judged(LocalJudge(HashEmbedder()), response)
    assert set(scores) == {"relevance", "coherence", "conciseness"}
    assert all(isinstance(score, Unscored) and reason in score.reason for score in scores.values())


def test_faithfulness_is_judged_only_with_context():
    judge = LocalJudge(HashEmbedder())
    context = ("LoRA trains two small matrices.", "The base weights stay frozen.")
    supported = judged(judge, "LoRA trains two small matrices.", "What is LoRA?", context)["faithfulness"]
    invented = judged(judge, "Octopuses invented it near Berlin in 1804.", "What is LoRA?", context)["faithfulness"]
    assert "faithfulness" not in judged(judge, GOOD)
    assert supported.score > 4.5
    assert invented.score < 1.5
    assert "Octopuses" in invented.justification


def test_sentences_name_the_evidence():
    judge = LocalJudge(HashEmbedder())
    assert "“It scales well.”" in judged(judge, "It scales well. " * 6)["coherence"].justification
    assert "mid sentence" in judged(judge, GOOD[:150])["coherence"].justification
    assert "pruning" in judged(judge, GOOD, "What is pruning of weights?")["relevance"].justification
    assert "instead of answering" in judged(judge, QUERY)["relevance"].justification
    assert (
        "words where about" in judged(judge, GOOD, "Describe vector databases in 10 words")["conciseness"].justification
    )


def test_a_failing_embedder_is_unscored_with_its_error():
    class Broken(HashEmbedder):
        def embed(self, texts, on_progress=None):
            raise Unavailable("no carrier delivered the weights")

    scores = judged(LocalJudge(Broken()), GOOD)
    assert all("no carrier delivered" in score.reason for score in scores.values())


def test_the_id_names_version_and_embedder():
    assert LocalJudge(HashEmbedder()).id == f"local-judge@1+{HashEmbedder().id}"
    assert LocalJudge(HashEmbedder()).model == ""


@pytest.mark.small_models
def test_tells_gross_failures_from_a_good_answer():
    judge = LocalJudge(open_embedder(load_settings().models))
    good = judged(judge, GOOD)
    assert all(isinstance(score, Verdict) and score.score > 3.9 for score in good.values())
    off_topic, scattered, loop = (judged(judge, text) for text in (OFF_TOPIC, SCATTERED, "Vectors are fast. " * 12))
    assert off_topic["relevance"].score < 1.5
    assert scattered["relevance"].score < 1.5
    assert scattered["coherence"].score < 2
    assert loop["coherence"].score < 1.5
    assert loop["conciseness"].score < 2
    assert judged(judge, GIBBERISH)["coherence"].score < 2.5
    assert judged(judge, QUERY)["relevance"].score < 2
    assert judged(judge, f"Certainly! {GOOD} In conclusion, they are useful. {GOOD}")["conciseness"].score < 3
