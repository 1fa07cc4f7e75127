"""Text and JSON of what came of a run."""
