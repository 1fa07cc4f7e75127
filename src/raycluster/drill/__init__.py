"""Breaks something on purpose, under load, and tells what clients saw of it."""
