"""Run directories: their files, how they were made, and how they are loaded."""
