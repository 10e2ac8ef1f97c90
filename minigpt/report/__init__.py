"""Compare run directories in tables, plots and statistics. Imports no torch."""
