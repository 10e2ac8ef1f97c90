"""One file a command. Only the command that runs is imported."""
