"""Tasks, scorers, statistics, run folders and reports: POPE, CHAIR and MME by the official rules."""
