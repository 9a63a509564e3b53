"""APIs that the engine is asked for by its chat endpoint, whose streams alone bring token ids.

A request is read in its own shape and made a chat's; the chat's stream is told in the events, or
its reply in the document, of that API. What comes out is equal to what vLLM's own endpoint says.
Whatever a translation does not know is handed through to that endpoint.
"""
