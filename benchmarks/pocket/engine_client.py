"""A client of a vLLM that serves the pocket model. Standard library only."""

from __future__ import annotations

import json
import urllib.request

__all__ = ["PocketEngineClient"]

MODEL_NAME = "pocket"


class PocketEngineClient:
    """An OpenAI-compatible vLLM server at a base URL."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def post(self, path: str, **body) -> dict:
        """Send one JSON request; returns the JSON response."""
        data = json.dumps({"model": MODEL_NAME, **body}).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens added."""
        return self.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
