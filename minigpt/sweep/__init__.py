"""Sweeps (`minigpt train -m`): plan, run, resume and display jobs."""
