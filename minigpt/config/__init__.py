"""From YAML and the command line to a typed Config. Only here omegaconf and hydra are imported."""
