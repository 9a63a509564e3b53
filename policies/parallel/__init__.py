"""Policies over several reasoning traces of one request, and their shared parts."""
