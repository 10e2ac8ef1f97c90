"""`minigpt compare`: the same search for every design, then fresh seeds. `run.py` has the steps."""
