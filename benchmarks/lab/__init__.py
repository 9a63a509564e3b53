"""The laboratory: record whole traces once, then replay any policy over them without an engine."""
