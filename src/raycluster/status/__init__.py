"""What `raycluster status` shows: a look at the cluster, its figures, text and JSON."""
