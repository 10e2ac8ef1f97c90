"""Record a model's attention, biases and predictions for one prompt, for figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.attention import Attention
from minigpt.model.bias import AttentionBias
from minigpt.model.context import Auxiliary, ForwardContext
from minigpt.tokenizer import Tokenizer

VISIBLE = {"\n": "⏎", " ": "␣", "\t": "⇥"}
MAX_LABEL = 12


@dataclass(frozen=True)
class Recording:
    """The results of one forward pass, on the CPU: logits (t, n), and per layer the attention
    weights and the bias of the scores (h, i, j), NaN where masked. `biases` is empty for a
    positional scheme without a score_mod. `usage`: the fraction of each layer's assignments that
    each expert got, one tensor (1, layer, e), or an empty list without experts."""

    logits: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    usage: list[Tensor]


def token_label(content: bytes) -> str:
    """Return a token's bytes as a short visible text; in hexadecimal if they are not UTF-8."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{content.hex(' ')}>"
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    label = "".join(VISIBLE.get(c, e) for c, e in zip(text, escaped, strict=True))
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


@torch.no_grad()
def record(
    model: GPT, tokens: Sequence[int], document_ids: Sequence[int] | None = None
) -> Recording:
    """Run the model on one text and record its attention and its routers.

    `document_ids`: see `GPT.hidden`.
    """
    device, original = model.head.weight.device, model.attention_by_layer
    recorders = [Recorder(attention) for attention in original]
    model.attention_by_layer = list[Attention](recorders)
    auxiliary = Auxiliary()
    try:
        ids = None if document_ids is None else torch.tensor([document_ids], device=device)
        inputs = torch.tensor([tokens], device=device)
        logits = model(inputs, document_ids=ids, auxiliary=auxiliary)[0]
    finally:
        model.attention_by_layer = original
    has_bias = model.positional.overrides("score_mod")
    usage = [v for name, v in auxiliary.metrics.items() if name.startswith("expert_usage/")]
    return Recording(
        logits.float().cpu(),
        [recorder.weights for recorder in recorders],
        [recorder.bias for recorder in recorders] if has_bias else [],
        [torch.stack(usage)[None].cpu()] if usage else [],
    )


class Recorder(Attention):
    """An attention that records the weights and biases (h, i, j) of one text, NaN where masked."""

    def __init__(self, attention: Attention) -> None:
        super(Attention, self).__init__()
        self.attention = attention
        self.weights: Tensor
        self.bias: Tensor

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext, layer: int, dropout: float
    ) -> Tensor:
        n, positions = ctx.n_tokens, ctx.positions
        # With one-hot values, the attention output is the attention weights.
        one_hot = torch.eye(q.shape[2], n, device=q.device, dtype=v.dtype)
        one_hot = one_hot.expand(*v.shape[:2], -1, -1)
        weights = self.attention(q, k, one_hot, ctx.without_side_effects(), layer, 0.0)
        rotated_q, rotated_k = ctx.positional.rotate(q, k, positions, layer)
        bias = self.attention.bias_of(ctx, positions, positions, ctx.in_order)
        dense = bias.dense(rotated_q, rotated_k, layer)[0, :, :n, :n]
        masked = dense.isinf()
        self.weights = weights[0, :, :n].masked_fill(masked, torch.nan).float().cpu()
        self.bias = dense.masked_fill(masked, torch.nan).float().cpu()
        return self.attention(q, k, v, ctx, layer, dropout)


def next_tokens(
    recording: Recording, tokens: Sequence[int], tokenizer: Tokenizer, top: int
) -> list[list[tuple[str, float]]]:
    """Return for each token the actual and the `top` most probable next tokens, with probabilities.

    The last token has no next token: ("", nan).
    """
    rows = []
    for index, p in enumerate(recording.logits.softmax(-1)):
        shown = [*tokens[index + 1 : index + 2], *p.topk(min(top, len(p))).indices.tolist()]
        row = [(token_label(tokenizer.token_bytes(token)), p[token].item()) for token in shown]
        rows.append(row if index + 1 < len(tokens) else [("", math.nan), *row])
    return rows


@torch.no_grad()
def scheme_values(model: GPT, recording: Recording) -> dict[str, list[Tensor]]:
    """Return the embeddings, rotations and biases of the positional scheme, by name of the figure.

    They are computed through the scheme's hooks. There is one tensor per layer, or a single one if
    layers do not differ: `embed`, `block_input` (1, position, channel), `angles`
    (h, position, pair), `decay`, `bias` (h, distance), `score` (h, i, j); h is 1 if heads do not
    differ. There are max_length positions, or block_size if it is None.
    """
    scheme, config = model.positional, model.config
    device = model.head.weight.device
    n = scheme.max_length or max(config.block_size, len(recording.logits))
    positions = torch.arange(n, device=device)[None]
    zeros = torch.zeros(1, n, config.n_embd, device=device)
    layers = range(config.n_layer)

    figures: dict[str, list[Tensor]] = {"score": recording.biases}
    if scheme.overrides("embed"):
        figures["embed"] = [scheme.embed(zeros, positions)]
    if scheme.overrides("block_input"):
        figures["block_input"] = [scheme.block_input(zeros, positions, layer) for layer in layers]
    if scheme.overrides("rotate"):
        figures["angles"] = [rotary_angles(model, positions, layer) for layer in layers]
        figures["decay"] = [_rotary_decay(model, positions, layer) for layer in layers]
    if scheme.bias_depends_on in ("positions", "layer"):
        figures["bias"] = [_bias_by_distance(model, positions, layer) for layer in layers]
    return {
        name: [v.cpu() for v in (values[:1] if _all_equal(values) else values)]
        for name, values in figures.items()
        if values
    }


def rotary_angles(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """Return the angles of channel pairs at positions (1, t): (h, t, pair), in (-pi, pi].

    Measured by rotating the unit vector of each channel: its partner is the other channel with the
    largest component. h is 1 if heads do not differ. There are no pairs if nothing is rotated.
    """
    config, angles = model.config, []
    for channel, vector in enumerate(torch.eye(config.shape.head_size, device=positions.device)):
        q = vector.expand(1, config.n_head, positions.shape[1], -1)
        rotated = model.positional.rotate(q, q[:, : config.shape.n_kv_head], positions, layer)[0][0]
        component = rotated.abs().sum((0, 1))
        component[channel] = 0
        partner = int(component.argmax())
        if partner > channel and component[partner] > 0:
            angles.append(torch.atan2(rotated[..., partner], rotated[..., channel]))
    return _one_if_same(torch.stack(angles, -1) if angles else torch.zeros(1, 1, 0))


def _rotary_decay(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """Return the mean over channels of a query of ones times a key of ones at 0: (h, distance)."""
    config = model.config
    shape = (1, config.n_head, positions.shape[1], config.shape.head_size)
    ones = torch.ones(shape, device=positions.device)
    q, k = model.positional.rotate(ones, ones[:, : config.shape.n_kv_head], positions, layer)
    k = k.repeat_interleave(config.n_head // config.shape.n_kv_head, dim=1)
    return _one_if_same((q * k[:, :, :1]).mean(-1)[0])


def _bias_by_distance(model: GPT, positions: Tensor, layer: int) -> Tensor:
    """Return the bias between the last position and those before it: (h, distance)."""
    config = model.config
    shape = (1, config.n_head, positions.shape[1], config.shape.head_size)
    k = torch.zeros(shape, device=positions.device)
    last = positions[:, -1:]
    bias = AttentionBias(model.positional, config.n_head, last, positions, in_order=False)
    return bias.dense(k[:, :, -1:], k, layer)[0, :, 0].flip(-1)


def _one_if_same(by_head: Tensor) -> Tensor:
    return by_head[:1] if (by_head == by_head[:1]).all() else by_head


def _all_equal(values: list[Tensor]) -> bool:
    return all(torch.equal(v.nan_to_num(), values[0].nan_to_num()) for v in values[1:])
