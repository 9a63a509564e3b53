"""The Messages and Responses APIs, served by translating requests to chat completions."""
