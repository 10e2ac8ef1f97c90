"""What a model does with one prompt, and how its positions work, as plain data to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.attention import Attention, Pass
from minigpt.model.attention.base import for_each_head
from minigpt.model.bias import Scores
from minigpt.model.ffn.moe import Routing
from minigpt.tokenizer import Tokenizer

VISIBLE = {"\n": "⏎", " ": "␣", "\t": "⇥"}
LONGEST_LABEL = 12


@dataclass(frozen=True)
class Recording:
    """One forward pass on the CPU: logits (t, n), and of each layer the attention weights and the
    score term (h, i, j), NaN where masked. No terms where the scheme has none. `usage`: the share
    of each layer's tokens that each expert got, (1, layer, e) in a list, empty without experts."""

    logits: Tensor
    weights: list[Tensor]
    terms: list[Tensor]
    usage: list[Tensor]


def token_label(content: bytes) -> str:
    """A token's bytes as a short visible text; those that are no UTF-8 in hexadecimal."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{content.hex(' ')}>"
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    label = "".join(VISIBLE.get(c, e) for c, e in zip(text, escaped, strict=True))
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


@torch.no_grad()
def record(model: GPT, tokens: Sequence[int], documents: Sequence[int] | None = None) -> Recording:
    """Run the model on one text and keep what its attention and its routers do.

    `documents`: which one each token is of, see `GPT.forward`.
    """
    device, attentions = model.head.weight.device, model.attentions
    recorders = [Recorder(attention) for attention in attentions]
    model.attentions = [*recorders]
    routings: list[Routing] = []
    try:
        ids = None if documents is None else torch.tensor([documents], device=device)
        logits = model(torch.tensor([tokens], device=device), documents=ids, routings=routings)[0]
    finally:
        model.attentions = attentions
    weights, terms = ([getattr(r, kind) for r in recorders] for kind in ("weights", "terms"))
    terms = terms if model.positional.score != "none" else []
    usage = [torch.stack([r.usage for r in routings])[None].cpu()] if routings else []
    return Recording(logits.float().cpu(), weights, terms, usage)


class Recorder(Attention):
    """An attention that keeps the weights and terms (h, i, j) of one text, NaN where masked."""

    def __init__(self, attention: Attention) -> None:
        super(Attention, self).__init__()
        self.attention = attention
        self.weights: Tensor
        self.terms: Tensor

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, shared: Pass, layer: int, dropout: float
    ) -> Tensor:
        n, positions = shared.length, shared.positions
        # What is mixed of one-hot values is the weights themselves.
        one_hot = torch.eye(q.shape[2], n, device=q.device, dtype=v.dtype).expand(
            *v.shape[:2], -1, -1
        )
        weights = self.attention(q, k, one_hot, shared.apart(), layer, 0.0)
        turned_q, turned_k = shared.scheme.rotate(q, k, positions, layer)
        scores = shared.scores(positions, positions, shared.in_order, self.attention)
        terms = scores.additive(turned_q, for_each_head(turned_k, q), layer)[0, :, :n, :n]
        hidden = terms.isinf()
        self.weights = weights[0, :, :n].masked_fill(hidden, torch.nan).float().cpu()
        self.terms = terms.masked_fill(hidden, torch.nan).float().cpu()
        return self.attention(q, k, v, shared, layer, dropout)


def next_tokens(
    recording: Recording, tokens: Sequence[int], tokenizer: Tokenizer, top: int
) -> list[list[tuple[str, float]]]:
    """After each token: the one that came and the `top` likeliest, with their probabilities.

    After the last none came: that is ("", nan).
    """
    rows = []
    for place, p in enumerate(recording.logits.softmax(-1)):
        shown = [*tokens[place + 1 : place + 2], *p.topk(min(top, len(p))).indices.tolist()]
        row = [(token_label(tokenizer.token_bytes(token)), p[token].item()) for token in shown]
        rows.append(row if place + 1 < len(tokens) else [("", math.nan), *row])
    return rows


@torch.no_grad()
def scheme_values(model: GPT, recording: Recording) -> dict[str, list[Tensor]]:
    """What the scheme adds or turns, found through its hooks alone, so that every scheme has it.

    Of each layer, or once where the layers do not differ; axes, h being 1 where heads do not
    differ: `embed`, `block_input` (1, position, channel), `angles` (h, position, pair), `decay`,
    `bias` (h, distance), `score` (h, i, j). Positions go up to max_length, else block_size.
    """
    scheme, config = model.positional, model.config
    device = model.head.weight.device
    n = scheme.max_length or max(config.block_size, len(recording.logits))
    positions = torch.arange(n, device=device)[None]
    nothing = torch.zeros(1, n, config.n_embd, device=device)
    layers = range(config.n_layer)

    found: dict[str, list[Tensor]] = {"score": recording.terms}
    if scheme.uses("embed"):
        found["embed"] = [scheme.embed(nothing, positions)]
    if scheme.uses("block_input"):
        found["block_input"] = [scheme.block_input(nothing, positions, la) for la in layers]
    if scheme.uses("rotate"):
        found["angles"] = [rotary_angles(model, positions, layer) for layer in layers]
        found["decay"] = [_rotary_decay(model, positions, layer) for layer in layers]
    if scheme.score in ("positions", "layer"):
        found["bias"] = [_bias_by_distance(model, positions, layer) for layer in layers]
    return {
        kind: [v.cpu() for v in (values[:1] if _all_equal(values) else values)]
        for kind, values in found.items()
        if values
    }


def rotary_angles(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """By how much channel pairs are turned at positions (1, t): (h, t, pair), in (-pi, pi].

    Measured: a channel's vector is rotated, and its partner is the channel it turns into most.
    h is 1 where heads do not differ; no pairs where nothing turns.
    """
    config, angles = model.config, []
    for channel, vector in enumerate(torch.eye(config.head_size, device=positions.device)):
        q = vector.expand(1, config.n_head, positions.shape[1], -1)
        turned = model.positional.rotate(q, q[:, : config.kv_heads], positions, layer)[0][0]
        reach = turned.abs().sum((0, 1))
        reach[channel] = 0
        partner = int(reach.argmax())
        if partner > channel and reach[partner] > 0:
            angles.append(torch.atan2(turned[..., partner], turned[..., channel]))
    return _one_if_same(torch.stack(angles, -1) if angles else torch.zeros(1, 1, 0))


def _rotary_decay(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """The mean over channels of a query of ones times a key of ones at 0: (h, distance)."""
    config = model.config
    shape = (1, config.n_head, positions.shape[1], config.head_size)
    ones = torch.ones(shape, device=positions.device)
    q, k = model.positional.rotate(ones, ones[:, : config.kv_heads], positions, layer)
    k = k.repeat_interleave(config.n_head // config.kv_heads, dim=1)
    return _one_if_same((q * k[:, :, :1]).mean(-1)[0])


def _bias_by_distance(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """The score term between the last position and those before it: (h, distance)."""
    config = model.config
    shape = (1, config.n_head, positions.shape[1], config.head_size)
    k = torch.zeros(shape, device=positions.device)
    scores = Scores(model.positional, config.n_head, positions[:, -1:], positions, in_order=False)
    return scores.additive(k[:, :, -1:], k, layer)[0, :, 0].flip(-1)


def _one_if_same(by_head: Tensor) -> Tensor:
    return by_head[:1] if (by_head == by_head[:1]).all() else by_head


def _all_equal(values: list[Tensor]) -> bool:
    return all(torch.equal(v.nan_to_num(), values[0].nan_to_num()) for v in values[1:])
