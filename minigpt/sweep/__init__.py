"""Sweeps: what `minigpt train -m` runs, skips, resumes and shows."""
