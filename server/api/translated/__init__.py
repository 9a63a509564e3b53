"""APIs served by asking the engine for a chat: Messages and Responses."""
