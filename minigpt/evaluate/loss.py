"""Evaluation: one deterministic pass over a split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.console import Advance, ignore_progress
from minigpt.data.tokens import Batch, Split
from minigpt.loss_of import EVERY_TOKEN
from minigpt.model import GPT
from minigpt.model.stack import positions_in_documents
from minigpt.objective.base import Draws, Objective, first_continued
from minigpt.ranks import Ranks
from minigpt.runtime import Runtime
from minigpt.tokenizer import Tokenizer

# Maximum number of logits, and of attention scores, per batch; a scheme may need several copies.
NUMBERS_AT_ONCE = 2**25
# Limit of a batch on a CPU, so that activations stay in its caches.
TOKENS_IN_CACHE = 2048
# Threads of a CPU that compute a batch each. Each needs memory for a batch.
BATCHES_AT_ONCE = 4
# Targets of `evaluate_at_context`.
N_TARGETS = 4096
# nanoGPT's loss estimate in its recipe for CPUs: number of batches, windows per batch.
RANDOM_BATCHES, RANDOM_BATCH_SIZE = 20, 12


@dataclass(frozen=True)
class Evaluation:
    """`loss`: the mean in nats/token. `bits_per_byte`: bits/byte, comparable across tokenizers if
    all tokens are predicted; without those of special tokens.

    `by_position`: the mean loss of tokens with 1, 2, ... tokens of context. `loss_of`: which tokens
    these are the losses of, see `Objective`. `continuation_bits_per_byte`: of the second half of
    each window, which causal and prefix models share; None where it is not defined.
    """

    loss: float
    bits_per_byte: float
    by_position: list[float]
    loss_of: str = EVERY_TOKEN
    continuation_bits_per_byte: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss); comparable only between runs with the same tokenizer."""
        return perplexity(self.loss)

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics by name of a split: val_loss, val_perplexity, val_bits_per_byte."""
        return {
            f"{split}_loss": self.loss,
            f"{split}_perplexity": self.perplexity,
            f"{split}_bits_per_byte": self.bits_per_byte,
        }


def perplexity(loss: float) -> float:
    """Return exp(loss), infinity on overflow."""
    return math.inf if loss > 700 else math.exp(loss)


def evaluate(
    model: GPT,
    split: Split,
    runtime: Runtime,
    length: int | None = None,
    progress: Advance = ignore_progress,
    *,
    objective: Objective | None = None,
) -> Evaluation:
    """Return the loss of an objective's targets of a split, in non-overlapping windows.

    Without an objective, or with the causal one, all tokens of the split but the first are targets.
    Other objectives have fixed random numbers. `length`: tokens per window, None for block_size.
    Each window starts without context. `progress`: called with the number of tokens of each batch,
    when it is done. Restores the model's train/eval mode. Raises UserError beyond the scheme's
    `max_length`.
    """
    length = model.config.block_size if length is None else length
    if objective is not None:
        objective.require_length("length", length)
    losses = losses_by_position(model, split, runtime, length, progress, objective)
    total, continued = math.fsum(losses.nats), math.fsum(losses.nats[first_continued(length) :])
    n_bytes = losses.n_continued_bytes
    return Evaluation(
        loss=total / sum(losses.counts),
        bits_per_byte=(total - losses.special_nats) / math.log(2) / losses.n_bytes,
        by_position=losses.means,
        loss_of=EVERY_TOKEN if objective is None else objective.loss_of,
        continuation_bits_per_byte=continued / math.log(2) / n_bytes if n_bytes else None,
    )


def evaluate_at_context(
    model: GPT,
    split: Split,
    tokenizer: Tokenizer,
    runtime: Runtime,
    n_context: int,
    progress: Advance = ignore_progress,
) -> Evaluation:
    """Return the loss of N_TARGETS tokens, each predicted from exactly the `n_context` before it.

    The targets are spread evenly over the second half of the split, so they are the same for every
    `n_context` up to half the split, and for every model with this tokenizer. `by_position` has one
    entry. `progress`: as in `evaluate`. Raises UserError beyond the scheme's `max_length`.
    """
    last = len(split.tokens) - 1
    first = max(n_context, len(split.tokens) // 2)
    n_targets = min(N_TARGETS, last - first + 1)
    targets = torch.linspace(first, last, n_targets, dtype=torch.float64).round().long()
    starts = (targets - n_context).to(split.tokens.device)[:, None]
    nats, n_bytes = 0.0, 0
    with model.evaluating(), runtime.autocast():
        for rows in starts.split(windows_at_once(model, runtime, n_context)):
            batch = split.windows_at(rows, n_context)
            hidden = model.hidden(batch.inputs, document_ids=batch.document_ids)[:, -1]
            logits, ids = model.logits(hidden).float(), batch.targets[:, -1]
            nats += F.cross_entropy(logits, ids, reduction="sum").item()
            n_bytes += sum(len(tokenizer.token_bytes(token)) for token in ids.tolist())
            progress(len(rows))
    return Evaluation(nats / n_targets, nats / math.log(2) / n_bytes, [nats / n_targets])


def random_batch_losses(
    model: GPT,
    split: Split,
    runtime: Runtime,
    n_estimates: int,
    seed: int = 0,
    progress: Advance = ignore_progress,
) -> list[float]:
    """Return `n_estimates` estimates of a split's loss from random batches, as in nanoGPT.

    An estimate is the mean of RANDOM_BATCHES batches of RANDOM_BATCH_SIZE windows of block_size.
    `progress`: as in `evaluate`.
    """
    generator = torch.Generator(split.tokens.device).manual_seed(seed)
    estimates = []
    with model.evaluating(), runtime.autocast():
        for _ in range(n_estimates):
            losses = []
            for _ in range(RANDOM_BATCHES):
                batch = split.draw(RANDOM_BATCH_SIZE, model.config.block_size, generator)
                loss = model.loss(batch.inputs, batch.targets, batch.document_ids)
                losses.append(loss.item())
                progress(batch.targets.numel())
            estimates.append(statistics.fmean(losses))
    return estimates


@dataclass(frozen=True)
class PositionLosses:
    """By position in the window: the summed cross-entropy, and the number of targets.

    `n_bytes`: UTF-8 bytes of all targets. `special_nats`: the part of `nats` of special tokens,
    which have no bytes. `n_continued_bytes`: of those after the first half of
    each window; 0 if the objective does not predict them, or a window can hold several documents.
    """

    nats: list[float]
    counts: list[int]
    n_bytes: int
    n_continued_bytes: int
    special_nats: float

    @property
    def means(self) -> list[float]:
        """The mean of each position; 0 where no window has a target."""
        return [nats / max(1, n) for nats, n in zip(self.nats, self.counts, strict=True)]


def losses_by_position(
    model: GPT,
    split: Split,
    runtime: Runtime,
    length: int,
    progress: Advance = ignore_progress,
    objective: Objective | None = None,
) -> PositionLosses:
    """Return the losses of an objective's targets in windows of `length`.

    Positions are counted in each window, or in each document of a window. Processes that train one
    run together share the batches, and return the sums of all. See `evaluate`.
    """
    batch_size = windows_at_once(model, runtime, length)
    nats = torch.zeros(length, dtype=torch.float64)
    counts = torch.zeros(length, dtype=torch.int64)
    n_bytes, n_continued_bytes, special_nats = torch.zeros(3, dtype=torch.float64)
    continues = objective is not None and objective.predicts_continuation
    continues = continues and length > 1 and split.document_ids is None

    def losses_of(batch: Batch) -> Tensor:
        with torch.inference_mode(), runtime.autocast():  # of a thread
            losses = model.loss(*batch.tensors, reduction="none")
        return losses.cpu().double()

    in_threads = runtime.device == "cpu" and model.backend_name != "flex"  # which compiles
    ranks = runtime.ranks
    own = ranks.share(split.window_places(length, batch_size))
    batches = (split.windows_at(*place) for place in own)
    is_chosen = objective is not None and not objective.predicts_all
    if objective is not None and is_chosen:
        batches = objective_batches(split, objective, length, batch_size, ranks)
    with model.evaluating(), batches_at_once(BATCHES_AT_ONCE if in_threads else 1) as computed:
        for batch, losses in computed(losses_of, batches):
            ids = batch.document_ids
            ids = torch.zeros_like(batch.inputs) if ids is None else ids
            positions, targets = positions_in_documents(ids).flatten().cpu(), batch.targets
            if batch.weights is not None:
                chosen = batch.weights.flatten().cpu() > 0
                positions, losses = positions[chosen], losses[chosen]
                targets = targets.flatten().cpu()[chosen]
            nats += positions.bincount(losses, length)  # in order: deterministic
            counts += positions.bincount(minlength=length)
            if objective is not None and is_chosen:
                of_target = objective.token_bytes[targets.flatten().cpu()]
                n_bytes += of_target.sum()
                special_nats += losses[of_target == 0].sum()
            if objective is not None and continues:
                continued = batch.targets[:, first_continued(length) :].cpu()
                n_continued_bytes += objective.token_bytes[continued].sum()
            progress(ranks.size * batch.inputs.numel())  # about; each has as many batches
    nats, counts = ranks.sum(nats, "an evaluation"), ranks.sum(counts, "an evaluation")
    sums = torch.stack((n_bytes, n_continued_bytes, special_nats))
    n_chosen, n_continued, of_special = ranks.sum(sums, "an evaluation").tolist()
    total = int(n_chosen) if is_chosen else split.target_bytes
    n_seen = int(counts.nonzero().max()) + 1  # below `length` if all documents are shorter
    by_position = (nats[:n_seen].tolist(), counts[:n_seen].tolist())
    return PositionLosses(*by_position, total, int(n_continued), of_special)


def objective_batches(
    split: Split, objective: Objective, length: int, batch_size: int, ranks: Ranks
) -> Iterator[Batch]:
    """Yield what an objective makes of this process's batches of windows.

    Its random numbers do not depend on `batch_size`.
    """
    batches: list[tuple[Tensor, int, Draws]] = []
    places = split.window_places(length, batch_size)
    for own_length, group in groupby(places, key=lambda place: place[1]):
        starts = [rows for rows, _ in group]
        sizes = [len(rows) for rows in starts]
        device = split.tokens.device
        draws = objective.draws_of_evaluation(sum(sizes), own_length, length, device)
        by_name = {name: x.split(sizes) for name, x in draws.items()}
        for index, rows in enumerate(starts):
            batches.append((rows, own_length, {name: x[index] for name, x in by_name.items()}))
    for rows, own_length, draws in ranks.share(batches):
        yield objective.apply(split.windows_at(rows, own_length), draws)


def windows_at_once(model: GPT, runtime: Runtime, length: int) -> int:
    """Return the number of windows of `length` tokens in a batch."""
    at_once = (length * model.n_vocab, length * length * model.config.n_head)
    batch_size = max(1, min(128, NUMBERS_AT_ONCE // max(at_once)))
    return (
        max(1, min(batch_size, TOKENS_IN_CACHE // length))
        if runtime.device == "cpu"
        else batch_size
    )


Computed = Iterator[tuple[Batch, Tensor]]


@contextmanager
def batches_at_once(
    limit: int,
) -> Iterator[Callable[[Callable[[Batch], Tensor], Iterable[Batch]], Computed]]:
    """Compute up to `limit` batches at once, each with a part of torch's CPU threads.

    Yields a function that returns each batch with its result, in order. Threads that share every
    operation wait for each other at its end, which takes long beside other programs; those that
    compute batches of their own do not wait. The result depends on the threads of one batch only.
    """
    threads = torch.get_num_threads()
    workers = min(threads, limit)
    if workers == 1:
        yield lambda compute, batches: ((batch, compute(batch)) for batch in batches)
        return
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:

            def computed(compute: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> Computed:
                rest = iter(batches)
                while some := list(islice(rest, 4 * workers)):  # not all of a long split
                    yield from zip(some, pool.map(compute, some), strict=True)

            yield computed
    finally:
        torch.set_num_threads(threads)
