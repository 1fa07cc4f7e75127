"""A file of requests through an endpoint: source -> census -> jobs -> work -> ledger -> summary."""
