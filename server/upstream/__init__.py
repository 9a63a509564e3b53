"""HTTP to the engine and to the auxiliary models, and the process that compares formulas."""
