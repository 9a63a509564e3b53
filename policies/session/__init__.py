"""The session: one reasoning trace under a policy, as a state machine without I/O."""
