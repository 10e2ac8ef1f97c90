"""Names and layouts of weights: of minigpt's modules and of those of an architecture.

Pure functions on dicts of tensors, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model.config import BLOCKS, ModelConfig
from minigpt.model.shape import ModelShape

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How a tensor of ours is divided among theirs, and put together again."""

    apart: Callable[[Tensor, ModelShape], Sequence[Tensor]]
    together: Callable[[list[Tensor], ModelShape], Tensor]


def _head_rows(shape: ModelShape) -> list[int]:
    """Return the number of rows of queries, keys and values."""
    return [n * shape.head_size for n in (shape.n_head, shape.n_kv_head, shape.n_kv_head)]


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 else tensor


def _to_groups(tensor: Tensor, shape: ModelShape) -> list[Tensor]:
    by_use = [
        rearrange(part, "(g h e) ... -> g h e ...", g=shape.n_kv_head, e=shape.head_size)
        for part in tensor.split(_head_rows(shape))
    ]
    return [torch.cat(by_use, dim=1).flatten(0, 2)]


def _from_groups(parts: list[Tensor], shape: ModelShape) -> Tensor:
    groups = rearrange(parts[0], "(g h e) ... -> g h e ...", g=shape.n_kv_head, e=shape.head_size)
    by_use = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
    return torch.cat([part.flatten(0, 2) for part in by_use])


WHOLE = Layout(lambda tensor, _: [tensor], lambda parts, _: parts[0])
# Linear weights (in, out), as in GPT-2.
TRANSPOSED = Layout(lambda tensor, _: [_transpose(tensor)], lambda parts, _: _transpose(parts[0]))
# Queries, keys and values.
BY_USE = Layout(
    lambda tensor, shape: tensor.split(_head_rows(shape)), lambda parts, _: torch.cat(parts)
)
# Gate and up.
HALVES = Layout(lambda tensor, _: tensor.chunk(2), lambda parts, _: torch.cat(parts))
# Rows ordered by key-value head, each with its queries, its key and its value: GPT-NeoX, BLOOM and
# Falcon. Ours are ordered by q, k and v, then head.
BY_GROUP = Layout(_to_groups, _from_groups)


@dataclass(frozen=True)
class Part:
    """A module of ours and its modules there; names have {layer} and {expert}.

    `bias`: whether theirs has biases where ours has none, which are then zeros: no (own), if the
    design has any (any), or always. `blocks`: the values of `model.block` of the designs with it.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = WHOLE
    bias: Literal["own", "any", "always"] = "own"
    blocks: tuple[str, ...] = BLOCKS

    def has_bias(self, config: ModelConfig) -> bool:
        """Return whether theirs has biases although ours has none."""
        return self.bias == "always" or (self.bias == "any" and config.bias is not False)


VOCABULARY = ("token_embedding", "head")  # modules with a row per token


def _modules(
    parts: Sequence[Part], config: ModelConfig
) -> Iterator[tuple[str, tuple[str, ...], Part]]:
    """Yield the name of each module of ours, the names of theirs, and its part."""
    n_expert = getattr(config.ffn, "n_expert", 1)
    for part in parts:
        if part.ours == "head" and config.embedding.name == "tied":
            continue
        if config.block not in part.blocks:
            continue
        layers = range(config.n_layer if "{layer}" in part.ours else 1)
        experts = range(n_expert if "{expert}" in part.ours else 1)
        for layer in layers:
            for expert in experts:
                names = (part.ours, *part.theirs)
                ours, *theirs = (name.format(layer=layer, expert=expert) for name in names)
                yield ours, tuple(theirs), part


def to_theirs(
    parts: Sequence[Part], weights: Mapping[str, Tensor], config: ModelConfig, n_vocab: int
) -> Tensors:
    """Return the state dict of a design by their names, in fp32.

    Rows of the padding of the vocabulary are left out. A norm without a gain becomes one with a
    gain of 1, a missing bias zeros where theirs has one.
    """
    shape, theirs = config.shape, {}
    rest = {*weights} - ({"head.weight"} if config.embedding.name == "tied" else set())
    for ours, names, part in _modules(parts, config):
        rest -= {f"{ours}.weight", f"{ours}.bias"}
        weight = weights.get(f"{ours}.weight")
        if weight is None:
            assert "norm" in ours, ours
            weight = torch.full((config.n_embd,), 0.0 if config.norm.unit_offset else 1.0)
        if ours in VOCABULARY:
            weight = weight[:n_vocab]
        bias = weights.get(f"{ours}.bias")
        if bias is None and part.has_bias(config):
            bias = torch.zeros(len(weight))
        for suffix, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                split = part.layout.apart(tensor.float().cpu(), shape)
                for name, piece in zip(names, split, strict=True):
                    theirs[f"{name}.{suffix}"] = piece.contiguous().clone()
    assert not rest, f"the requirements should have refused {rest}"
    return theirs


def _in_fp32(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of a file in fp32. Raises UserError for values that are not weights."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name}: has numbers of type {kind}, and minigpt reads only fp32 to fp16")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise UserError(f"{name}: has NaN or infinite values; restore the file")
    return tensor


# Buffers that earlier versions of transformers saved.
IGNORED = re.compile(r".*\.(attn|attention)\.(masked_bias|bias)|.*rotary_emb\.inv_freq")


def to_ours(
    parts: Sequence[Part],
    theirs: Mapping[str, Tensor],
    config: ModelConfig,
    n_vocab: int,
    expected: Mapping[str, torch.Size],
) -> Tensors:
    """Return the inverse of `to_theirs`. `expected`: the shapes of the state dict, by our names.

    Raises UserError for a tensor that is missing, has another shape, NaN or infinite values, or no
    place here.
    """
    shape, weights = config.shape, {}
    rest = dict(theirs)
    for ours, names, part in _modules(parts, config):
        for suffix in ("weight", "bias"):
            name = f"{ours}.{suffix}"
            pieces = [rest.pop(f"{their}.{suffix}", None) for their in names]
            named = zip(names, pieces, strict=True)
            found = [
                _in_fp32(f"{their}.{suffix}", piece) for their, piece in named if piece is not None
            ]
            if name not in expected:
                if any(piece.any() for piece in found):
                    raise UserError(f"{names[0]}.{suffix}: not zero, and minigpt has no bias there")
            elif len(found) == len(names):
                weights[name] = part.layout.together(found, shape).contiguous()
            else:
                raise UserError(f"{names[0]}.{suffix}: missing; restore the file")
            if name in weights and ours in VOCABULARY:
                weights[name] = weights[name][:n_vocab]
    if config.embedding.name == "tied":
        weights["head.weight"] = embedding = weights["token_embedding.weight"]
        name = next((part.theirs[0] for part in parts if part.ours == "head"), "") + ".weight"
        head = rest.pop(name, None)
        if head is not None and not torch.equal(head[:n_vocab].float(), embedding):
            raise UserError(
                f"{name}: not the embedding, but config.json says that the head is tied"
            )
    for name in rest:
        if not IGNORED.fullmatch(name):
            raise UserError(f"{name}: minigpt has no such tensor in this design")
    for name, size in expected.items():
        if name not in weights:
            raise UserError(f"{name}: no tensor of the file has these weights")
        if weights[name].shape != size:
            has = f"has the shape {tuple(weights[name].shape)} instead of {tuple(size)}"
            raise UserError(f"{name}: {has}; restore the file, or config.json")
    return weights
