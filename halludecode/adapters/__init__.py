"""Our strategies inside other harnesses, see README.md here: one module a harness.

A module imports its harness, which only that harness's environment has, and nothing of ours that
computes until a model is made: versions of libraries may differ from those that our engines want,
as long as a running `halludecode serve` computes.
"""
