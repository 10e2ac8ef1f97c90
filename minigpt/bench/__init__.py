"""What this machine does with a design: times in alternation, against its own ceilings."""
