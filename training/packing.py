"""Several rows in one sequence, kept apart by a block-diagonal causal mask and restarting positions.

Packed and separate rows give the same losses (a test compares them), and no padding is computed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.examples import Example


@dataclass(frozen=True)
class Pack:
    """One sequence of L tokens made of whole rows, of which N tokens are predicted."""

    tokens: Any
    """Token ids, int64, shape (1, L)."""
    positions: Any
    """Position within the row, int64, shape (1, L)."""
    mask: Any
    """Additive attention mask, float32, shape (1, 1, L, L): 0 where attention is allowed, else the type's minimum."""
    sources: Any
    """Index into L of the hidden state that predicts each counted token, int64, shape (N,)."""
    targets: Any
    """Ids of the counted tokens, int64, shape (N,)."""
    rows: Any
    """Which row of the pack each counted token belongs to, int64, shape (N,)."""
    size: int
    """Number of rows."""


def group(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit: indices of rows per sequence so that no sequence exceeds `capacity` tokens; order is kept inside."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        place = next((number for number, left in enumerate(room) if left >= length), None)
        if place is None:
            bins.append([])
            room.append(max(capacity, length))
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= length
    return bins


def pack(examples: Sequence[Example]) -> Pack:
    """The tensors of one sequence."""
    import torch

    tokens = [token for example in examples for token in example.tokens]
    positions = [position for example in examples for position in range(len(example.tokens))]
    segments = [row for row, example in enumerate(examples) for _ in example.tokens]
    sources: list[int] = []
    rows: list[int] = []
    offset = 0
    for row, example in enumerate(examples):
        counted = range(offset + example.answer_start, offset + len(example.tokens))
        sources += [place - 1 for place in counted]
        rows += [row] * len(counted)
        offset += len(example.tokens)
    ids = torch.tensor(tokens)
    return Pack(
        tokens=ids[None],
        positions=torch.tensor(positions)[None],
        mask=block_mask(torch.tensor(segments)),
        sources=torch.tensor(sources),
        targets=ids[torch.tensor(sources) + 1],
        rows=torch.tensor(rows),
        size=len(examples),
    )


def block_mask(segments: Any) -> Any:
    """Additive mask of shape (1, 1, L, L) from the row number of each token: causal, and only inside one row."""
    import torch

    allowed = (segments[:, None] == segments[None, :]).tril()
    mask = torch.zeros(allowed.shape, dtype=torch.float32).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return mask[None, None]


def batches(examples: Sequence[Example], capacity: int, epochs: int, seed: int) -> Iterator[list[Example]]:
    """The rows of every step, shuffled anew each epoch; the same arguments give the same steps."""
    for epoch in range(epochs):
        order = list(range(len(examples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for members in group([len(examples[index].tokens) for index in order], capacity):
            yield [examples[order[member]] for member in members]
