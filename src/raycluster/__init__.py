"""raycluster: vLLM on Ray Serve, on machines that you reach over SSH."""

__version__ = "0.1.0"
