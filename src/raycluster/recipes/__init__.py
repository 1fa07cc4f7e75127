"""What is known of open models, what of it fits on hosts, and what was measured."""
