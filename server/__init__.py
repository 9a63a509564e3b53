"""The gateway: HTTP on both sides, and the only package with I/O."""
