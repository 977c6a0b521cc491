"""What a person sees of a run: terminal tables, pages, figures, other harnesses' files."""
