"""Hyperparameter search with Ray Tune. `search.py` runs a search; each trial is a run."""
