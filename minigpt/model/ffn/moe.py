"""A mixture of experts: a router sends each token to a few of many feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minigpt.errors import require, require_one_of
from minigpt.model.ffn.base import FFN, FeedForward, FeedForwardConfig, GatedFeedForward

if TYPE_CHECKING:
    from minigpt.model.attention import Pass
    from minigpt.model.gpt import ModelConfig


# Longer pieces are padded to a multiple: oneDNN compiles a bf16 kernel for each new length.
ROWS = 64


@dataclass
class MixtureConfig(FeedForwardConfig):
    """`n_expert` layers of the kind `expert`, each of width `expansion`; a token takes `n_active`.

    `balance`: coefficient of the load-balancing loss in training; 0 leaves it out.
    """

    expert: str
    n_expert: int
    n_active: int
    balance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = (FeedForward, GatedFeedForward)  # of maps: they take any set of tokens
        kinds = [name for name in FFN.names() if issubclass(FFN.variant(name), pairs)]
        require_one_of("model.ffn.expert", self.expert, kinds)
        require(self.n_expert >= 1, "model.ffn.n_expert", self.n_expert, "must be 1 or more")
        why = f"must be from 1 to model.ffn.n_expert={self.n_expert}"
        require(1 <= self.n_active <= self.n_expert, "model.ffn.n_active", self.n_active, why)
        require(self.balance >= 0, "model.ffn.balance", self.balance, "must be 0 or more")


@dataclass(frozen=True)
class Routing:
    """Where one layer sent the tokens of one pass, over experts (e,).

    `usage`: the share of all assignments that an expert got; `probability`: its mean over tokens.
    """

    usage: Tensor
    probability: Tensor

    def balance_loss(self) -> Tensor:
        """n_expert sum_e usage_e probability_e: 1 where both are even, up to n_expert where not.

        Switch Transformer's (Fedus et al. 2021, section 2.2); its gradient is the router's.
        """
        return len(self.usage) * (self.usage * self.probability).sum()


@FFN.register("moe", MixtureConfig)
class MixtureOfExperts(nn.Module):
    """The sum over a token's k likeliest experts e of g_e FFN_e(x), p = softmax(W x).

    g is p over its sum among the k, as in Mixtral (Jiang et al. 2024, section 2.1). A single one's
    would be 1 and teach the router nothing, so it is p itself (Fedus et al. 2021, section 2.1).
    The router computes in its weights' precision. No expert is ever full: what becomes of a token
    depends on that token alone.

    Cost a token: k experts and the router. Tokens are sorted by expert; on a GPU the host waits
    once a layer to learn how many each has. Memory: k inputs and results a token.
    """

    def __init__(self, config: MixtureConfig, model: ModelConfig) -> None:
        super().__init__()
        self.n_active = config.n_active
        self.router = nn.Linear(model.n_embd, config.n_expert, bias=False)
        expert = FeedForwardConfig(config.expert, config.expansion)
        self.experts = nn.ModuleList(FFN.build(expert, model) for _ in range(config.n_expert))

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            p = self.router(x.to(self.router.weight.dtype)).softmax(-1)
        gates, chosen = p.topk(self.n_active)  # (b, t, k)
        if self.n_active > 1:
            gates = gates / gates.sum(-1, keepdim=True)
        counts = F.one_hot(chosen, len(self.experts)).sum((0, 1, 2))
        if shared.routings is not None:
            shared.routings.append(Routing(counts / chosen.numel(), p.mean((0, 1))))

        # Permuted there and back: gradients of plain indexing add up in the order threads come.
        order = chosen.flatten().argsort(stable=True)
        inputs = repeat(x, "b t d -> (b t k) d", k=self.n_active)[order]
        pieces = zip(self.experts, inputs.split(counts.tolist()), strict=True)
        results = [
            _in_few_lengths(expert, piece, shared)
            for expert, piece in pieces
            if len(piece) or self.training  # an idle expert's gradient is zero, not missing
        ]
        results = torch.cat(results)[order.argsort()]
        results = rearrange(results, "(b t k) d -> b t k d", b=len(x), k=self.n_active)
        return (results * gates[..., None]).sum(-2)

    def idle_parameters(self) -> int:
        """Parameters that a token does not use: those of the experts it is not sent to."""
        idle = len(self.experts) - self.n_active
        return idle * sum(p.numel() for p in self.experts[0].parameters())


def _in_few_lengths(expert: nn.Module, piece: Tensor, shared: Pass) -> Tensor:
    """expert(piece) of (n, d), with rows of zeros that are cut off again; see `ROWS`."""
    spare = -len(piece) % ROWS if len(piece) > ROWS else 0
    return expert(F.pad(piece, (0, 0, 0, spare)), shared)[: len(piece)]
