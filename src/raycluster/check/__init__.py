"""`raycluster check`."""
