"""Things that are trained, not found: soft prompts."""
