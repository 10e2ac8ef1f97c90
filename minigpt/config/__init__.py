"""From YAML and the command line to a typed Config. No other package imports hydra."""
