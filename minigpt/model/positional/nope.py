"""No positions at all: the causal mask is the only order the model sees."""

from minigpt.model.positional.base import POSITIONAL, PositionalConfig, PositionalScheme


@POSITIONAL.register("nope", PositionalConfig)
class NoPositions(PositionalScheme):
    """NoPE (Haviv et al. 2022, Kazemnejad et al. 2023). Costs nothing; defined at every length."""
