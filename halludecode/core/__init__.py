"""What strategies are made of: prompts, attention verbs, plans, specs and their arithmetic."""
