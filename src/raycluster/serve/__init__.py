"""What runs on the cluster, inside Ray Serve; it travels there as files.

It imports nothing else of ours; `settings`, `rootcause`, `failures`, `wanted` and `asking` are
shared with the laptop.
"""
