"""Who may send what: the checks that every request passes before the engine is asked."""
