"""The vLLM engine: our rows in one continuous batch with everybody else's requests."""
