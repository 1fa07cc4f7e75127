"""A look at what an engine will find: in a node's own environment, before replicas start there."""
