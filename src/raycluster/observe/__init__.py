"""Reads hosts, Ray, hub and registries; changes nothing."""
