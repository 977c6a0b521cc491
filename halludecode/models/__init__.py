"""What differs between model families: one table."""
