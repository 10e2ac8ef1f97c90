"""Training: the loop, its state, the optimizer and the schedule."""
