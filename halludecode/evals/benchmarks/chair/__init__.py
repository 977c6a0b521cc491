"""CHAIR: objects that a caption names and its picture does not hold."""
