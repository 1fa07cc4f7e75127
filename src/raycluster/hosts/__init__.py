"""Ways to hosts: connections, runtimes, and what is asked of them."""
