"""Shared slices of an alert's evidence."""

from __future__ import annotations

from monitoring.slices import in_slice, shared_slices
from streams.events import InteractionRecorded, ReleaseRef


def interaction(name, prompt="What is LoRA?", **fields):
    defaults = {"conversation_id": name, "response": "Text.", "finish_reason": "stop"}
    return InteractionRecorded(interaction_id=name, prompt=prompt, **(defaults | fields))


USUAL = [interaction(f"u{number}", tags={"team": "docs"}) for number in range(20)]


def test_the_most_explaining_slice_comes_first():
    release = ReleaseRef(release_id="sha256:" + "a" * 64, prompt="post@2", model="m")
    evidence = [
        interaction(f"e{number}", "Recipe for soup with leeks?", release=release, tags={"team": "food", "lang": "en"})
        for number in range(9)
    ] + [interaction("e9")]
    slices = shared_slices(evidence, USUAL, ["What is LoRA?", "What is PEFT?", "Explain BM25", "Chunking?", "Drift?"])
    found = {(one.field, one.value): one for one in slices}
    assert found["tag:team", "food"].share == 0.9
    assert found["tag:team", "food"].reference_share == 0.0
    assert found["topic", "soup"].share == 0.9
    assert found["prompt", "post@2"].share == 0.9
    assert ("channel", "production") not in found
    assert [one.share - one.reference_share for one in slices] == sorted(
        (one.share - one.reference_share for one in slices), reverse=True
    )
    assert len(slices) <= 8


def test_without_anything_to_compare_with_nothing_is_claimed():
    assert shared_slices([interaction("e")], USUAL[:3]) == ()
    assert shared_slices([], USUAL) == ()
    assert shared_slices(USUAL[:10], USUAL[10:], ["What is LoRA?"] * 6) == ()


def test_membership():
    refused = interaction("r", "How do I cook soups?", finish_reason="refused")
    slices = shared_slices([refused] * 4, USUAL, ["What is LoRA?"] * 5)
    assert {one.field for one in slices} >= {"finish_reason", "topic"}
    assert all(in_slice(refused, one) for one in slices)
    assert not any(in_slice(USUAL[0], one) for one in slices)
