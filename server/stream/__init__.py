"""Server-sent events: splitting, reading, editing and writing them."""
