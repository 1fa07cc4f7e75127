"""What a change needs and costs: memory, downloads, interruption, price; pure."""
