"""A GPT written out: one token, one head and one key at a time. Slow, and easy to believe.

It shares no code with the package. `weights` are a model's parameters by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minigpt.model import ModelConfig

Weights = Mapping[str, Tensor]
Vectors = list[Tensor]
"""One vector a token."""


class Positions:
    """What a scheme does to one token or one pair of tokens. By default nothing."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.base = getattr(config.positional, "base", math.nan)

    def embed(self, x: Tensor, position: int) -> Tensor:
        """The embedding (d,) of one token."""
        return x

    def turn(self, x: Tensor, position: int) -> Tensor:
        """The query or key (e,) of one token and head."""
        return x

    def score(self, head: int, i: int, j: int) -> float:
        """What is added to the scaled score of a query at position i and a key at position j."""
        return 0.0


class Nope(Positions):
    """Nothing (Kazemnejad et al. 2023)."""


class Learned(Positions):
    """h_0 = U W_e + W_p (Radford et al. 2018, equation 2)."""

    def embed(self, x: Tensor, position: int) -> Tensor:
        return x + self.weights["positional.table.weight"][position]


class Sinusoidal(Positions):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of it (Vaswani et al. 2017, 3.5).

    Embeddings are multiplied by sqrt(d) first (section 3.4).
    """

    def embed(self, x: Tensor, position: int) -> Tensor:
        d = len(x)
        wave = []
        for i in range(d // 2):
            angle = position / self.base ** (2 * i / d)
            wave += [math.sin(angle), math.cos(angle)]
        return x * math.sqrt(d) + torch.tensor(wave)


class Rope(Positions):
    """Each channel pair is a complex number times exp(i m theta_k) (Su et al. 2021, 3.2.2).

    theta_k = 10000^(-2(k-1)/e), k = 1 to e/2. A pair is (k, k + e/2), as in GPT-NeoX.
    """

    def turn(self, x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        turned = []
        for k in range(1, half + 1):
            theta = self.base ** (-2 * (k - 1) / len(x))
            factor = torch.polar(torch.tensor(1.0), torch.tensor(position * theta))
            turned.append(torch.complex(x[k - 1], x[k - 1 + half]) * factor)
        return torch.stack([z.real for z in turned] + [z.imag for z in turned])


class Alibi(Positions):
    """q_i k_j + m (j - i) (Press et al. 2021, section 3).

    For n heads the slopes m are the geometric sequence that starts at 2^(-8/n) with that ratio.
    Where n is no power of two: the closest lower power's, then every other one of its double's.
    """

    def score(self, head: int, i: int, j: int) -> float:
        return self.slopes(self.config.n_head)[head] * (j - i)

    def slopes(self, n: int) -> list[float]:
        lower = 2 ** math.floor(math.log2(n))
        if n == lower:
            start = ratio = 2 ** (-8 / n)
            return [start * ratio**k for k in range(n)]
        return self.slopes(lower) + self.slopes(2 * lower)[0::2][: n - lower]


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, 0.0)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def two_maps(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Weights, str], Tensor]:
    """FFN(x) = W2 f(W1 x + b1) + b2."""

    def forward(x: Tensor, weights: Weights, name: str) -> Tensor:
        return linear(activation(linear(x, weights, f"{name}.up")), weights, f"{name}.out")

    return forward


def swiglu(x: Tensor, weights: Weights, name: str) -> Tensor:
    """FFN(x) = W2 (swish(W1 x) * V x) (Shazeer 2020, equation 6). W1 stands above V."""
    both = linear(x, weights, f"{name}.gate_up")
    half = len(both) // 2
    return linear(swish(both[:half]) * both[half:], weights, f"{name}.out")


def layernorm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias (Ba et al. 2016)."""
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    y = (x - mean) / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"]
    return y + weights.get(f"{name}.bias", 0.0)


def rmsnorm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """x / sqrt(mean square + eps) * gain (Zhang & Sennrich 2019)."""
    return x / torch.sqrt((x**2).sum() / len(x) + 1e-5) * weights[f"{name}.weight"]


# One row a registered variant.
POSITIONS: dict[str, type[Positions]] = {
    "alibi": Alibi,
    "learned": Learned,
    "nope": Nope,
    "rope": Rope,
    "sinusoidal": Sinusoidal,
}
FEED_FORWARDS: dict[str, Callable[[Tensor, Weights, str], Tensor]] = {
    "gelu": two_maps(gelu),
    "relu": two_maps(relu),
    "relu2": two_maps(lambda x: relu(x) ** 2),
    "swiglu": swiglu,
}
NORMS: dict[str, Callable[[Tensor, Weights, str], Tensor]] = {
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """W x + b, or W x where the map has no bias."""
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def reference_logits(
    config: ModelConfig, weights: Weights, n_vocab: int, tokens: Tensor, positions: Tensor
) -> Tensor:
    """Logits (b, t, n_vocab) of tokens (b, t) at positions (b, t)."""
    rows = []
    for row, places in zip(tokens.tolist(), positions.tolist(), strict=True):
        rows.append(torch.stack(one_text(config, weights, row, places)))
    return torch.stack(rows)[:, :, :n_vocab]


def reference_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target)."""
    losses = []
    for row, row_targets in zip(logits, targets.tolist(), strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            losses.append(torch.log(torch.exp(scores).sum()) - scores[target])
    return torch.stack(losses).sum() / len(losses)


def one_text(
    config: ModelConfig, weights: Weights, tokens: list[int], positions: list[int]
) -> Vectors:
    """Logits after each token of one text."""
    scheme = POSITIONS[config.positional.name](config, weights)
    table = weights["token_embedding.weight"]
    xs = [scheme.embed(table[token], p) for token, p in zip(tokens, positions, strict=True)]

    def attend(inputs: Vectors, name: str) -> Vectors:
        return attention(config, weights, scheme, name, inputs, positions)

    def feed_forward(inputs: Vectors, name: str) -> Vectors:
        return [FEED_FORWARDS[config.ffn.name](x, weights, name) for x in inputs]

    for layer in range(config.n_layer):
        xs = residual(config, weights, xs, attend, f"blocks.{layer}.attention")
        xs = residual(config, weights, xs, feed_forward, f"blocks.{layer}.ffn")
    if config.norm.placement == "pre":
        xs = [NORMS[config.norm.kind](x, weights, "final_norm") for x in xs]
    head = weights["head.weight" if config.embedding.name == "untied" else "token_embedding.weight"]
    return [head @ x for x in xs]


def residual(
    config: ModelConfig,
    weights: Weights,
    xs: Vectors,
    sublayer: Callable[[Vectors, str], Vectors],
    name: str,
) -> Vectors:
    """x + f(norm(x)) or norm(x + f(x))."""

    def norm(x: Tensor) -> Tensor:
        return NORMS[config.norm.kind](x, weights, f"{name}_norm")

    if config.norm.placement == "pre":
        changes = sublayer([norm(x) for x in xs], name)
        return [x + change for x, change in zip(xs, changes, strict=True)]
    assert config.norm.placement == "post"
    return [norm(x + change) for x, change in zip(xs, sublayer(xs, name), strict=True)]


def attention(
    config: ModelConfig,
    weights: Weights,
    scheme: Positions,
    name: str,
    xs: Vectors,
    positions: list[int],
) -> Vectors:
    """Causal attention: each query over the keys at or before its position."""
    size = config.n_embd // config.n_head
    projected = [linear(x, weights, f"{name}.qkv") for x in xs]
    heads: list[Vectors] = [[] for _ in xs]
    for head in range(config.n_head):
        first = head * size
        queries, keys, values = [], [], []
        for qkv, position in zip(projected, positions, strict=True):
            q, k, v = (y[first : first + size] for y in qkv.split(config.n_embd))
            if config.qk_norm:
                q, k = unit(q), unit(k)
            queries.append(scheme.turn(q, position))
            keys.append(scheme.turn(k, position))
            values.append(v)
        for query, i in enumerate(positions):
            total, mixed = torch.zeros(()), torch.zeros(size)
            for key, j in enumerate(positions):
                if j > i:
                    continue
                score = (queries[query] * keys[key]).sum() / math.sqrt(size)
                weight = torch.exp(score + scheme.score(head, i, j))
                total, mixed = total + weight, mixed + weight * values[key]
            heads[query].append(mixed / total)
    return [linear(torch.cat(mixed), weights, f"{name}.out") for mixed in heads]


def unit(x: Tensor) -> Tensor:
    """x over its root mean square."""
    return x / torch.sqrt((x**2).sum() / len(x) + torch.finfo(x.dtype).eps)
