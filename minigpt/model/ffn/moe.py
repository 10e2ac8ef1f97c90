"""A mixture of experts: a router sends each token to a few of many feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minigpt.errors import require, require_at_least, require_one_of
from minigpt.model.context import Auxiliary, ForwardContext
from minigpt.model.ffn.base import FFN, MLP, FeedForward, FeedForwardConfig, GatedMLP
from minigpt.model.linear import Linear, linear_flops
from minigpt.model.shape import ModelShape

# Longer batches of an expert are padded to a multiple: oneDNN compiles a bf16 kernel per length.
ROWS = 64


@dataclass
class MixtureConfig(FeedForwardConfig):
    """`n_expert` layers of the kind `expert`, each of width `expansion`; a token uses `n_active`.

    `balance`: coefficient of the load-balancing loss in training; 0 disables it.
    """

    expert: str
    n_expert: int
    n_active: int
    balance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        # only MLPs: they process each token alone
        kinds = [name for name in FFN.names() if issubclass(FFN.variant(name), MLP | GatedMLP)]
        require_one_of("model.ffn.expert", self.expert, kinds)
        require_at_least(1, "model.ffn", self, "n_expert")
        why = f"must be from 1 to model.ffn.n_expert={self.n_expert}"
        require(1 <= self.n_active <= self.n_expert, "model.ffn.n_active", self.n_active, why)
        require_at_least(0, "model.ffn", self, "balance")


def balance_loss(usage: Tensor, probability: Tensor) -> Tensor:
    """Return n_expert sum_e usage_e probability_e: 1 if both are uniform, at most n_expert.

    usage (e,): the fraction of assignments to an expert; probability (e,): its mean over tokens.
    Switch Transformer (Fedus et al. 2021, section 2.2). Only the router receives a gradient.
    """
    return len(usage) * (usage * probability).sum()


@FFN.register("moe", MixtureConfig)
class MixtureOfExperts(FeedForward):
    """The sum over a token's k most probable experts e of g_e FFN_e(x), p = softmax(W x).

    g is p renormalised over the k experts, as in Mixtral (Jiang et al. 2024, section 2.1). For k =
    1, g is p (Fedus et al. 2021, section 2.1), since renormalising would give the router no
    gradient. The router computes in the precision of its weights. Experts have no capacity limit,
    so that the output for a token depends only on that token.

    In training it reports `balance_loss` and the usage of experts to `ctx.auxiliary`.

    Cost per token: k experts and the router. Tokens are sorted by expert; on a GPU the host waits
    once per layer for the number of tokens of each. Memory: k inputs and outputs per token.
    """

    def __init__(self, config: MixtureConfig, shape: ModelShape) -> None:
        super().__init__()
        self.n_active, self.balance = config.n_active, config.balance
        self.router = Linear(shape.n_embd, config.n_expert, bias=False)
        expert = FeedForwardConfig(config.expert, config.expansion)
        self.experts = nn.ModuleList(FFN.build(expert, shape) for _ in range(config.n_expert))

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            p = self.router(x.to(self.router.weight.dtype)).softmax(-1)
        gates, experts = p.topk(self.n_active)  # (b, t, k)
        if self.n_active > 1:
            gates = gates / gates.sum(-1, keepdim=True)
        counts = F.one_hot(experts, len(self.experts)).sum((0, 1, 2))
        if ctx.auxiliary is not None:
            assignments = ctx.auxiliary.total(counts)
            usage = assignments / assignments.sum()
            self._report(ctx.auxiliary, usage, p.mean((0, 1)))

        # A permutation and its inverse: the gradient of indexing is not deterministic.
        order = experts.flatten().argsort(stable=True)
        inputs = repeat(x, "b t d -> (b t k) d", k=self.n_active)[order]
        by_expert = zip(self.experts, inputs.split(counts.tolist()), strict=True)
        outputs = [
            _apply_padded(expert, rows, ctx)
            for expert, rows in by_expert
            if len(rows) or self.training  # an unused expert's gradient is zero, not missing
        ]
        outputs = torch.cat(outputs)[order.argsort()]
        outputs = rearrange(outputs, "(b t k) d -> b t k d", b=len(x), k=self.n_active)
        return (outputs * gates[..., None]).sum(-2)

    def _report(self, auxiliary: Auxiliary, usage: Tensor, probability: Tensor) -> None:
        losses = auxiliary.losses.setdefault("balance_loss", [])
        auxiliary.coefficients["balance_loss"] = self.balance
        auxiliary.metrics[f"expert_usage/layer_{len(losses)}/expert"] = usage
        losses.append(balance_loss(usage, probability))

    def flops_per_token(self) -> int:
        return linear_flops(self.router) + self.n_active * linear_flops(self.experts[0])

    def inactive_parameters(self) -> int:
        """Return the number of parameters in the experts that a token does not use."""
        inactive = len(self.experts) - self.n_active
        return inactive * sum(p.numel() for p in self.experts[0].parameters())


def _apply_padded(expert: nn.Module, rows: Tensor, ctx: ForwardContext) -> Tensor:
    """Return expert(rows) of rows (n, d), padded with rows of zeros; see `ROWS`."""
    more = -len(rows) % ROWS if len(rows) > ROWS else 0
    return expert(F.pad(rows, (0, 0, 0, more)), ctx)[: len(rows)]
