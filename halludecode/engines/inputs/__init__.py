"""From a request to what a forward is fed: prompts, pictures, rows."""
