"""Ports of the head, brought to 127.0.0.1 of this machine over one SSH connection."""
