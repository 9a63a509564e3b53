"""The relay: carries one choice of a response from the engine to the client."""
