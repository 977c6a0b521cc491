"""Tasks, scorers, statistics, run folders and reports, by the official rules."""
