"""The gateway: an HTTP server for clients, an HTTP client of the engine."""
