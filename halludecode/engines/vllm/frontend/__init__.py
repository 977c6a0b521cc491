"""vLLM's front-end process: requests in, answers out. Knows no scheduler and no worker."""
