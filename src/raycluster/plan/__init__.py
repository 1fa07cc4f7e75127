"""Decides; does no I/O."""
