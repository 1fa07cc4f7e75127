"""Ways to run processes on a host, one file each."""
