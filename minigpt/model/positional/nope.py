"""No positions: the causal mask alone makes the order of tokens matter."""

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme


@POSITIONAL.register("nope", PositionalConfig)
class NoPositions(PositionalScheme):
    """NoPE (Haviv et al. 2022, Kazemnejad et al. 2023). No cost; defined at every length."""
