"""One module per command. Only the command that runs is imported."""
