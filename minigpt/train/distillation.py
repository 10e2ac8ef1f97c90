"""The loss of a training step: the cross-entropy, or with a teacher also a distillation loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.objective.base import CausalConfig, ObjectiveConfig
from minigpt.run.load import TrainedRun
from minigpt.runtime import Runtime
from minigpt.tokenizer import Tokenizer
from minigpt.train.compilation import Loss


def training_loss(
    config: ObjectiveConfig, model: GPT, tokenizer: Tokenizer, runtime: Runtime
) -> Loss:
    """Return the loss that training minimizes. Raises UserError for a teacher that does not fit."""
    if not isinstance(config, CausalConfig) or config.teacher is None:
        return model.training_loss
    trained = TrainedRun.load(config.teacher, device=runtime.device)
    why = None
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        why = "has another tokenizer; use a run with the same tokenizer on the same text"
    limit, needed = trained.model.positional.max_length, model.config.block_size
    if limit is not None and limit < needed:
        why = f"has {limit} positions, and {needed} are needed; lower model.block_size"
    if why is not None:
        raise UserError(f"objective.teacher={config.teacher}: {why}")
    return Distillation(model, trained.model.requires_grad_(False), config)


@dataclass(eq=False)
class Distillation:
    """(1 - w) cross-entropy + w T^2 KL(p_teacher || p_student), with softmaxes at temperature T.

    The loss of Hinton et al. 2015, averaged over tokens. `distillation` in the metrics is the KL
    divergence without its factors; train_loss stays the cross-entropy.
    """

    model: GPT
    teacher: GPT
    config: CausalConfig

    def __call__(
        self, inputs: Tensor, targets: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch (b, t), and the metrics to log by name."""
        temperature, weight = self.config.temperature, self.config.weight
        logits = self.model(inputs, document_ids=document_ids).float()
        with torch.no_grad():
            of_teacher = self.teacher(inputs, document_ids=document_ids).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        divergence = F.kl_div(
            (logits / temperature).log_softmax(-1).flatten(0, 1),
            (of_teacher / temperature).log_softmax(-1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        total = (1 - weight) * loss + weight * temperature**2 * divergence
        return total, {"train_loss": loss.detach(), "distillation": divergence.detach()}
