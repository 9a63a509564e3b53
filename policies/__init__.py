"""Policies: pure decisions. No I/O, no clock, no randomness, standard library only."""
