"""What was seen of a cluster, as values."""
