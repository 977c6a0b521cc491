"""Scores as sums over clusters, their intervals and paired tests."""
