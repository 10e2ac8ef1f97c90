"""`data.order=epochs` visits each target once per epoch, compared with counting."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from minigpt.config.compose import composed_config
from minigpt.data import Batch
from minigpt.data.order import Epochs, RandomWindows
from minigpt.data.tokens import Split
from minigpt.errors import UserError

SIZES = [(50, 7, 3), (49, 7, 2), (40, 1, 4), (9, 8, 5), (15, 8, 2), (16, 8, 3), (301, 16, 64)]


def order(n: int, block_size: int, batch_size: int, seed: int = 1) -> Epochs:
    """Return epochs over a split whose tokens are their own indices."""
    split = Split("train", torch.arange(n), n)
    return Epochs(split, batch_size, block_size, torch.Generator(), seed)


def windows(epochs: Epochs, first: int = 0) -> list[list[int]]:
    """Return the targets of three epochs' windows, in order; begin at a step."""
    n, size = 3 * epochs.n_windows, epochs.batch_size
    batches = (epochs.batch(step) for step in range(first, first + -(-n // size)))
    rows = [row for batch in batches for row in batch.targets.tolist()]
    return list(islice(rows, n))


@pytest.mark.parametrize(("n", "block_size", "batch_size"), SIZES)
def test_every_target_occurs_once_per_epoch(n: int, block_size: int, batch_size: int) -> None:
    epochs = order(n, block_size, batch_size)
    rows = windows(epochs)
    by_epoch = [rows[i : i + epochs.n_windows] for i in range(0, len(rows), epochs.n_windows)]
    for of_epoch in by_epoch:
        counts = Counter(target for row in of_epoch for target in row)
        assert set(counts.values()) == {1}
        assert sorted(counts) == list(range(min(counts), max(counts) + 1))  # one part of the text
        assert min(counts) >= 1 and max(counts) < n
        left_out = n - 1 - len(counts)
        assert left_out < 2 * block_size and left_out < max(n - 1, 2 * block_size - 1)
    if epochs.n_windows > 3:
        assert len({str(of_epoch) for of_epoch in by_epoch}) == 3
        assert all(of_epoch != sorted(of_epoch) for of_epoch in by_epoch)


def test_all_offsets_occur() -> None:
    epochs = order(50, 7, 1)
    firsts = {min(map(min, windows(epochs, step))) for step in range(0, 200 * epochs.n_windows, 6)}
    assert set(range(1, 8)) <= firsts


def test_batches_depend_on_the_step_and_seed_only() -> None:
    """So a resumed run, which starts with a later step, and replicas get the same batches."""
    whole = order(301, 16, 5)
    expected = [whole.batch(step).inputs for step in range(12)]
    for first in (3, 7, 11):
        resumed = order(301, 16, 5)
        for step in range(first, 12):
            assert torch.equal(resumed.batch(step).inputs, expected[step])
    larger = order(301, 16, 10)  # the same windows in larger batches
    assert torch.equal(larger.batch(2).inputs, torch.cat(expected[4:6]))
    others = [order(301, 16, 5, seed).batch(0).inputs for seed in (2, 3)]
    assert not any(torch.equal(inputs, expected[0]) for inputs in others)


def test_batches_have_the_documents_of_their_tokens() -> None:
    ids = torch.tensor([0] * 11 + [1] * 20 + [2] * 19)
    split = Split("train", torch.arange(50), 50, ids)
    epochs = Epochs(split, 5, 7, torch.Generator(), 1)
    for step in range(4):
        batch = epochs.batch(step)
        assert batch.document_ids is not None
        assert torch.equal(batch.document_ids, ids[batch.inputs])
        assert torch.equal(batch.inputs + 1, batch.targets)


def test_random_windows_are_those_of_draw() -> None:
    split = Split("train", torch.arange(90), 90)
    one, other = (torch.Generator().manual_seed(4) for _ in range(2))
    batches = RandomWindows(split, 3, 8, one, seed=1)
    for step in range(3):
        expected: Batch = split.draw(3, 8, other)
        assert torch.equal(batches.batch(step).inputs, expected.inputs)


def test_an_unknown_order_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^data\.order=epoch: .*Did you mean epochs"):
        composed_config(["data.order=epoch"])
