"""What a strategy must know of a model before it runs there: artifacts, made once and kept."""
