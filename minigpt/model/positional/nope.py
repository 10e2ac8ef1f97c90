"""No positional encoding: only the causal mask depends on the order of tokens."""

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme


@POSITIONAL.register("nope", PositionalConfig)
class NoPositions(PositionalScheme):
    """NoPE (Haviv et al. 2022, Kazemnejad et al. 2023). No parameters; defined at every length."""
