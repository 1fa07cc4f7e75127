"""What the processes of a cluster wrote: what is meant, reading it, showing it."""
