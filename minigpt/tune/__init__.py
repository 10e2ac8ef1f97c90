"""Hyper-parameter search on Ray Tune. `search.py` is the way through it; a trial is a run."""
