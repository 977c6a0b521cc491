"""POPE: yes/no questions about the presence of objects."""
