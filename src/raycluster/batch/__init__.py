"""A file of requests through an endpoint: input -> jobs -> work -> ledger -> summary."""
