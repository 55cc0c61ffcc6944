"""Images of a pipeline: how they are generated, and which of them may be used for what."""
