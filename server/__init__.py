"""The gateway: HTTP on both sides, and the only place with I/O."""

__version__ = "0.1.0"
