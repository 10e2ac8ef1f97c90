"""Run directories: files, provenance, and loading a trained run."""
