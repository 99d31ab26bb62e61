"""What the interactions of an alert share, compared with the traffic or the texts they should look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from monitoring.text_features import content_words
from streams.events import InteractionRecorded, Slice

MIN_SHARE = 0.3
MIN_EXCESS = 0.15
MIN_BACKGROUND = 5
MOST = 8


def shared_slices(
    evidence: Sequence[InteractionRecorded],
    background: Sequence[InteractionRecorded],
    reference_texts: Sequence[str] = (),
) -> tuple[Slice, ...]:
    """The (field, value) pairs that are much more frequent in the evidence, most explaining first, at most 8.

    Fields of interactions (finish_reason, application, channel, prompt version, model, adapter, each tag) are
    compared with the background, which needs at least 5 interactions; topics (words of the prompts) with the
    reference texts, or with the background's prompts when there are none. A slice holds at least 30 % of the evidence
    and 15 percentage points more of it than of what it is compared with; the difference of shares ranks.
    """
    if not evidence:
        return ()
    found: list[Slice] = []
    if len(background) >= MIN_BACKGROUND:
        shares, usual = _shares([_fields(one) for one in evidence]), _shares([_fields(one) for one in background])
        found += _excess(shares, usual)
    texts = list(reference_texts) or [one.prompt for one in background]
    if len(texts) >= MIN_BACKGROUND:
        spellings = _spellings([one.prompt for one in evidence])
        topics = _shares([{("topic", spellings[stem]): 1 for stem in content_words(one.prompt)} for one in evidence])
        usual = _shares([{("topic", spellings.get(stem, "")): 1 for stem in content_words(text)} for text in texts])
        found += _excess(topics, usual)
    found.sort(key=lambda one: (one.reference_share - one.share, one.field, one.value))
    return tuple(found[:MOST])


def in_slice(interaction: InteractionRecorded, one: Slice) -> bool:
    """Whether an interaction belongs to a slice."""
    if one.field == "topic":
        return bool(content_words(one.value).keys() & content_words(interaction.prompt).keys())
    return (one.field, one.value) in _fields(interaction)


def _fields(interaction: InteractionRecorded) -> dict[tuple[str, str], int]:
    release = interaction.release
    pairs = {
        "finish_reason": interaction.finish_reason,
        "application": interaction.application,
        "channel": interaction.channel,
        "prompt": release.prompt if release else "",
        "model": release.model if release else "",
        "adapter": (release.adapter or "none") if release else "",
        **{f"tag:{name}": value for name, value in interaction.tags.items()},
    }
    return {(field, value): 1 for field, value in pairs.items() if value}


def _shares(rows: Sequence[Mapping[tuple[str, str], int]]) -> dict[tuple[str, str], float]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        counts.update(row)
    return {pair: count / len(rows) for pair, count in counts.items()}


def _excess(shares: Mapping[tuple[str, str], float], usual: Mapping[tuple[str, str], float]) -> list[Slice]:
    return [
        Slice(field=field, value=value, share=share, reference_share=usual.get((field, value), 0.0))
        for (field, value), share in shares.items()
        if share >= MIN_SHARE and share - usual.get((field, value), 0.0) >= MIN_EXCESS
    ]


def _spellings(prompts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for prompt in prompts:
        found = content_words(prompt) | found
    return found
