"""What stands before an engine: who asks, whether they may, and what their requests took.

vLLM's server has it as a middleware, on the path of its own Python, which may be another one than
the replica's: nothing else of ours is imported here. There it is a package of another name, as
`vllm.write_inside` writes it.
"""
