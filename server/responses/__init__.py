"""Whole responses: under a policy, passed through, with several choices or traces."""
