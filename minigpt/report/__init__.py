"""From run directories to the comparison a paper would print. Nothing here imports torch."""
