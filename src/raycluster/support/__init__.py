"""One archive of what tells how a cluster is, without its secrets."""
