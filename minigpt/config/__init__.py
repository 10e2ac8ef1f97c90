"""From YAML and the command line to one typed object; the only package that knows omegaconf."""
