"""Connections to the engine and to the auxiliary models."""
