"""Stopping policies of one reasoning trace: one small file per policy."""
