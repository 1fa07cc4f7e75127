"""Shows on one machine with a GPU what was promised of it, network or not: scripts/prove-gpu."""
