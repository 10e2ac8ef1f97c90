"""Record a model's attention, biases and predictions for one prompt, for figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.attention import Attention
from minigpt.model.bias import AttentionBias
from minigpt.model.block import Block
from minigpt.model.context import Auxiliary, ForwardContext
from minigpt.model.cross_attention import CrossAttention
from minigpt.model.memory import Memory
from minigpt.model.stack import Stack
from minigpt.model.visibility import everything
from minigpt.tokenizer import Tokenizer

T = TypeVar("T")

VISIBLE = {"\n": "⏎", " ": "␣", "\t": "⇥"}
MAX_LABEL = 12


@dataclass(frozen=True)
class StackRecording:
    """What a stack computed for `n_tokens` tokens, on the CPU: per layer the attention weights and
    the bias of the scores (h, i, j), NaN where masked. `biases` is empty for a positional scheme
    without a score_mod. `usage`: the fraction of each layer's assignments that each expert got, one
    tensor (1, layer, e), or an empty list without experts. `cross`: per layer the weights (h, i, s)
    of cross-attention, empty without."""

    n_tokens: int
    weights: list[Tensor]
    biases: list[Tensor]
    usage: list[Tensor]
    cross: list[Tensor]


@dataclass(frozen=True)
class Recording(StackRecording):
    """What a model computed: its own stack, its encoder if it has one, and logits (t, n)."""

    logits: Tensor
    encoder: StackRecording | None


def label_of(token: int, tokenizer: Tokenizer, special: Sequence[str] = ()) -> str:
    """Return the label of a token; `special`: the names of special tokens, by id."""
    if token >= tokenizer.n_vocab:
        return special[token - tokenizer.n_vocab]
    return token_label(tokenizer.token_bytes(token))


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
    model: GPT,
    tokens: Sequence[int],
    document_ids: Sequence[int] | None = None,
    prefix: int | None = None,
    source: Sequence[int] | None = None,
) -> Recording:
    """Run the model on one text and record its attention and its routers.

    `document_ids`: see `GPT.hidden`. `prefix`: how many tokens are read in both directions.
    `source`: what the encoder reads.
    """
    device = model.head.weight.device
    inputs = torch.tensor([tokens], device=device)
    ids = None if document_ids is None else torch.tensor([document_ids], device=device)
    lengths = None if prefix is None else torch.tensor([prefix], device=device)
    memory: Memory | None = None
    encoder: StackRecording | None = None
    if source is not None:
        read = torch.tensor([source], device=device)
        assert model.encoder is not None
        memory, encoder = record_stack(
            model.encoder, len(source), lambda auxiliary: model.encode(read, auxiliary=auxiliary)
        )
    logits, own = record_stack(
        model,
        len(tokens),
        lambda auxiliary: model(inputs, None, None, ids, auxiliary, lengths, memory)[0],
    )
    return Recording(**vars(own), logits=logits.float().cpu(), encoder=encoder)


def record_stack(
    stack: Stack, n_tokens: int, compute: Callable[[Auxiliary], T]
) -> tuple[T, StackRecording]:
    """Return the result of `compute`, and what the stack computed for it."""
    original = stack.attention_by_layer
    recorders = [Recorder(attention) for attention in original]
    cross: list[Tensor] = []
    layers = [block.cross_attention for block in stack.blocks if isinstance(block, Block)]

    def record_cross(layer: CrossAttention, inputs: Any, _: Tensor) -> None:
        cross.append(cross_attention_weights(layer, *inputs)[0].float().cpu())

    hooks = [layer.register_forward_hook(record_cross) for layer in layers if layer is not None]
    stack.attention_by_layer = list[Attention](recorders)
    auxiliary = Auxiliary()
    try:
        result = compute(auxiliary)
    finally:
        stack.attention_by_layer = original
        for hook in hooks:
            hook.remove()
    has_bias = stack.positional.overrides("score_mod")
    usage = [v for name, v in auxiliary.metrics.items() if name.startswith("expert_usage/")]
    return result, StackRecording(
        n_tokens,
        [recorder.weights for recorder in recorders],
        [recorder.bias for recorder in recorders] if has_bias else [],
        [torch.stack(usage)[None].cpu()] if usage else [],
        cross,
    )


def cross_attention_weights(layer: CrossAttention, x: Tensor, ctx: ForwardContext) -> Tensor:
    """Return the weights (b, h, t, s) of cross-attention for hidden states x (b, t, d)."""
    q, k, v = layer.heads(x, ctx)
    return layer.attend(q, k, one_hot(k.shape[2], k.shape[2], v), ctx)


def one_hot(rows: int, n: int, v: Tensor) -> Tensor:
    """Return values (b, h, rows, n) like `v` for which the output of attention is its weights."""
    return torch.eye(rows, n, device=v.device, dtype=v.dtype).expand(*v.shape[:2], -1, -1)


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
        values = one_hot(q.shape[2], n, v)
        weights = self.attention(q, k, values, ctx.without_side_effects(), layer, 0.0)
        rotated_q, rotated_k = ctx.positional.rotate(q, k, positions, layer)
        bias = self.attention.bias_of(ctx, positions, positions, ctx.in_order)
        dense = bias.dense(rotated_q, rotated_k, layer)[0, :, :n, :n]
        masked = dense.isinf()
        self.weights = weights[0, :, :n].masked_fill(masked, torch.nan).float().cpu()
        self.bias = dense.masked_fill(masked, torch.nan).float().cpu()
        return self.attention(q, k, v, ctx, layer, dropout)


def next_tokens(
    recording: Recording,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    top: int,
    targets: Sequence[int | None] | None = None,
    special: Sequence[str] = (),
) -> list[list[tuple[str, float]]]:
    """Return for each token the actual and the `top` most probable next tokens, with probabilities.

    `targets`: what is predicted at each token, by default the token after it. If it is unknown, as
    after the last token: ("", nan). `special`: see `label_of`.
    """
    rows = []
    targets = [*tokens[1:], None] if targets is None else targets
    for target, p in zip(targets, recording.logits.softmax(-1), strict=True):
        best = p.topk(min(top, len(p))).indices.tolist()
        shown = best if target is None else [target, *best]
        row = [(label_of(token, tokenizer, special), p[token].item()) for token in shown]
        rows.append([("", math.nan), *row] if target is None else row)
    return rows


@torch.no_grad()
def scheme_values(stack: Stack, recording: StackRecording) -> dict[str, list[Tensor]]:
    """Return the embeddings, rotations and biases of the positional scheme, by name of the figure.

    They are computed through the scheme's hooks. There is one tensor per layer, or a single one if
    layers do not differ: `embed`, `block_input` (1, position, channel), `angles`
    (h, position, pair), `decay`, `bias` (h, distance), `score` (h, i, j); h is 1 if heads do not
    differ. There are n positions: max_length, or block_size if it is None. Distances are 0 to
    n - 1, of a two-sided scheme 1 - n to n - 1.
    """
    scheme, config = stack.positional, stack.config
    device = stack.token_embedding.weight.device
    n = scheme.max_length or max(config.block_size, recording.n_tokens)
    positions = torch.arange(n, device=device)[None]
    zeros = torch.zeros(1, n, config.n_embd, device=device)
    layers = range(config.n_layer)

    figures: dict[str, list[Tensor]] = {"score": recording.biases}
    if scheme.overrides("embed"):
        figures["embed"] = [scheme.embed(zeros, positions)]
    if scheme.overrides("block_input"):
        figures["block_input"] = [scheme.block_input(zeros, positions, layer) for layer in layers]
    if scheme.overrides("rotate"):
        figures["angles"] = [rotary_angles(stack, positions, layer) for layer in layers]
        figures["decay"] = [_rotary_decay(stack, positions, layer) for layer in layers]
    if scheme.bias_depends_on in ("positions", "layer"):
        figures["bias"] = [_bias_by_distance(stack, positions, layer) for layer in layers]
    return {
        name: [v.cpu() for v in (values[:1] if _all_equal(values) else values)]
        for name, values in figures.items()
        if values
    }


def rotary_angles(stack: Stack, positions: Tensor, layer: int) -> Tensor:
    """Return the angles of channel pairs at positions (1, t): (h, t, pair), in (-pi, pi].

    Measured by rotating the unit vector of each channel: its partner is the other channel with the
    largest component. h is 1 if heads do not differ. There are no pairs if nothing is rotated.
    """
    config, angles = stack.config, []
    for channel, vector in enumerate(torch.eye(config.shape.head_size, device=positions.device)):
        q = vector.expand(1, config.n_head, positions.shape[1], -1)
        rotated = stack.positional.rotate(q, q[:, : config.shape.n_kv_head], positions, layer)[0][0]
        component = rotated.abs().sum((0, 1))
        component[channel] = 0
        partner = int(component.argmax())
        if partner > channel and component[partner] > 0:
            angles.append(torch.atan2(rotated[..., partner], rotated[..., channel]))
    return _one_if_same(torch.stack(angles, -1) if angles else torch.zeros(1, 1, 0))


def _rotary_decay(stack: Stack, positions: Tensor, layer: int) -> Tensor:
    """Return the mean over channels of a query of ones times a key of ones: (h, distance).

    The key is at position 0, or for negative distances the query.
    """
    config = stack.config
    shape = (1, config.n_head, positions.shape[1], config.shape.head_size)
    ones = torch.ones(shape, device=positions.device)
    q, k = stack.positional.rotate(ones, ones[:, : config.shape.n_kv_head], positions, layer)
    k = k.repeat_interleave(config.n_head // config.shape.n_kv_head, dim=1)
    decay = (q * k[:, :, :1]).mean(-1)[0]
    if stack.positional.two_sided:
        decay = torch.cat(((q[:, :, :1] * k[:, :, 1:]).mean(-1)[0].flip(-1), decay), -1)
    return _one_if_same(decay)


def _bias_by_distance(stack: Stack, positions: Tensor, layer: int) -> Tensor:
    """Return the bias between the last position and those before it: (h, distance).

    At negative distances, between the first position and those after it.
    """
    config = stack.config
    shape = (1, config.n_head, positions.shape[1], config.shape.head_size)
    zeros = torch.zeros(shape, device=positions.device)

    def of_query(position: Tensor) -> Tensor:
        parts = (stack.positional, config.n_head, position, positions)
        bias = AttentionBias(*parts, in_order=False, visible=everything)
        return bias.dense(zeros[:, :, :1], zeros, layer)[0, :, 0].flip(-1)

    values = of_query(positions[:, -1:])
    if stack.positional.two_sided:
        values = torch.cat((of_query(positions[:, :1])[:, :-1], values), -1)
    return values


def _one_if_same(by_head: Tensor) -> Tensor:
    return by_head[:1] if (by_head == by_head[:1]).all() else by_head


def _all_equal(values: list[Tensor]) -> bool:
    return all(torch.equal(v.nan_to_num(), values[0].nan_to_num()) for v in values[1:])
