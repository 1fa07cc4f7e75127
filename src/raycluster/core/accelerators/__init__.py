"""A host's GPUs: asked for by one script, read in one place, chosen from as the spec says."""
