"""What of vLLM this engine leans on beyond its public options; any of its processes."""
