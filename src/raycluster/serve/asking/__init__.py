"""Asks an endpoint until each request has its result: on the cluster, and on the laptop too.

Beside the standard library it needs h11 alone, which uvicorn brings to nodes.
"""
