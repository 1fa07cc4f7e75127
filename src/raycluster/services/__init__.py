"""What runs on hosts: pure functions from the spec to Processes, one file per service."""
