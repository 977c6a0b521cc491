"""vLLM's scheduler process: the rows of a request take every token together."""
