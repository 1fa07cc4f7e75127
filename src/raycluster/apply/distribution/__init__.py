"""Brings images, environments and models to hosts."""
