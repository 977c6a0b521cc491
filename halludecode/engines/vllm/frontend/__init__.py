"""vLLM's front-end process: requests in, answers out."""
