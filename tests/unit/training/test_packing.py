"""Packed rows are computed as if each stood alone, and only answers are counted."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import rows, tiny_model

from training.examples import Example
from training.model import adapter_parameters, answer_states, backward, losses_and_gradient, row_losses
from training.packing import batches, block_mask, group, pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_model(tmp_path_factory.mktemp("base"), trained=True)


def test_rows_fill_sequences_and_none_is_cut():
    lengths = [30, 40, 20, 10, 90, 5]
    bins = group(lengths, 64)
    assert sorted(index for members in bins for index in members) == list(range(6))
    assert bins == [[0, 2, 3], [1, 5], [4]]


def test_positions_restart_and_only_answers_are_targets():
    packed = pack([Example((1, 2, 3, 4), 2), Example((5, 6, 7), 1)])
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed.targets.tolist() == [3, 4, 6, 7]
    assert packed.sources.tolist() == [1, 2, 4, 5]
    assert packed.rows.tolist() == [0, 0, 1, 1]


def test_a_token_sees_only_what_came_before_it_in_its_own_row():
    allowed = block_mask(torch.tensor([0, 0, 1, 1, 1]))[0, 0] == 0
    assert allowed.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
        [False, False, True, True, True],
    ]


def test_packed_and_separate_rows_give_the_same_losses(model):
    packed = row_losses(model, rows(), 64)
    alone = row_losses(model, rows(), 1)
    assert [tokens for _, tokens in packed] == [len(row.answer) for row in rows()]
    for (one, tokens), (other, _) in zip(packed, alone, strict=True):
        assert one / tokens == pytest.approx(other / tokens, abs=1e-5)
    swapped = row_losses(model, [Example(rows()[3].tokens[::-1], rows()[3].answer_start)], 1)
    assert abs(swapped[0][0] - alone[3][0]) > 1e-2


def test_the_gradient_through_the_frozen_head_is_that_of_autograd(model):
    packed = pack(rows())
    states = answer_states(model, packed)
    losses, gradient = losses_and_gradient(model, states.detach(), packed.targets)
    free = states.detach().requires_grad_()
    expected = torch.nn.functional.cross_entropy(model.get_base_model().lm_head(free), packed.targets, reduction="none")
    expected.sum().backward()
    assert torch.allclose(losses, expected, atol=1e-5)
    assert torch.allclose(gradient, free.grad, atol=1e-5)


def test_only_the_adapter_gets_gradients(model):
    model.zero_grad()
    loss = backward(model, rows())
    assert loss > 0
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)
    assert len(with_gradient) == len(adapter_parameters(model)) == 2 * 7 * 2
    model.zero_grad()


def test_steps_are_the_same_for_a_seed_and_cover_every_row_each_epoch():
    first = list(batches(rows(), 40, 2, seed=1))
    assert first == list(batches(rows(), 40, 2, seed=1))
    assert first != list(batches(rows(), 40, 2, seed=2))
    seen = [row for step in first for row in step]
    assert sorted(seen, key=lambda row: row.tokens) == sorted(rows() * 2, key=lambda row: row.tokens)
    assert all(sum(len(row.tokens) for row in step) <= 40 for step in first)
