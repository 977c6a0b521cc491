"""vLLM's scheduler process: rows of a request take every token together. Knows no tensors."""
