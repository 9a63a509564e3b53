"""Finding markers, cues and boundaries in streamed text, and the dialects of model families."""
