"""Instructions read like requests of a person."""

from __future__ import annotations

import pytest

from training.topics import TEMPLATES, Topic, cleaned, instructions, topic_of

LORA = "LoRA: low-rank adaptation of large models"


def topic(title: str, heading: str, *, tags: tuple[str, ...] = (), source: str = "notes/a.md") -> Topic | None:
    return topic_of(title, heading, tags, source, "Some prose about it.")


@pytest.mark.parametrize(
    ("title", "heading", "kind", "text"),
    [
        (LORA, "How LoRA works", "clause", "how LoRA works"),
        (
            LORA,
            f"{LORA} > Why a low rank can be enough",
            "clause",
            "why a low rank can be enough when it comes to LoRA",
        ),
        (LORA, "Serving adapters", "activity", "serving adapters in the context of LoRA"),
        (LORA, "Known biases", "noun", "known biases in the context of LoRA"),
        (LORA, "", "subject", "LoRA"),
        (LORA, LORA, "subject", "LoRA"),
        (LORA, "3.2 Is LoRA lossless?", "noun", ""),
        ("Vector databases", "What is a vector?", "question", "What is a vector?"),
        ("Rollback", "Rollback must be boring", "title", "Rollback must be boring"),
        ("retrieval-augmented generation", "Why RAG helps", "clause", "why RAG helps"),
        ("Milvus", "Step 2: Install Milvus v2.4.1", "clause", "how to install Milvus"),
    ],
)
def test_headings_become_topics(title: str, heading: str, kind: str, text: str):
    found = topic(title, heading)
    assert found is not None
    if text:
        assert (found.kind, found.text) == (kind, text)
    else:
        assert found.text.endswith("?")


@pytest.mark.parametrize("heading", ["License", "Installation", "Contributing to x", "See also", "1.2.3", "a_b(c)"])
def test_headings_without_a_meaning_of_their_own_give_no_topic(heading: str):
    assert topic("peft: Parameter-Efficient Fine-Tuning", heading, source="package:peft") is None


def test_packages_and_usage_and_tags():
    assert topic("peft: Fine-Tuning", "peft", source="package:peft") == Topic(kind="package", text="peft")
    assert topic("peft: Fine-Tuning", "Usage", source="package:peft") == Topic(kind="clause", text="how to use peft")
    assert topic("README", "", tags=("vector search",)) == Topic(kind="subject", text="vector search")
    assert topic("README", "") is None


def test_headings_are_cleaned():
    assert cleaned("### 🚀 **2.1** `Fast` [search](x.md) v1.2.0 :") == "Fast search"
    assert cleaned("Step 3 - Is it good?") == "Is it good?"


def test_every_kind_has_phrasings_and_the_key_decides_which_comes_first():
    for kind, templates in TEMPLATES.items():
        made = instructions(Topic(kind=kind, text="how it goes"), "some key")
        assert sorted(made) == sorted(
            t.format(topic="how it goes")[0].upper() + t.format(topic="how it goes")[1:] for t in templates
        )
        assert made == instructions(Topic(kind=kind, text="how it goes"), "some key")
    firsts = {instructions(Topic(kind="noun", text="x"), str(key))[0] for key in range(40)}
    assert len(firsts) == len(TEMPLATES["noun"])
