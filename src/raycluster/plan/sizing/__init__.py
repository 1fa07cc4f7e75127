"""How much memory a model takes, from its own config; pure."""
