"""vLLM's worker processes: edits inside the forward, rows combined in the sampler."""
