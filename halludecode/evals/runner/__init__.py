"""Runs: answers made in batches, kept in a run folder, scored at the end."""
