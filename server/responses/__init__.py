"""Whole responses: under a policy or passed through, with several choices or traces."""
