"""AMBER: descriptions and yes/no questions about what is and is not there."""
