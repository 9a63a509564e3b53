"""Policies over several reasoning traces of one request, and what they share."""
