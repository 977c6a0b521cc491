"""What a model looks like from inside: token by token, and head by head."""
