"""Engine adapters: the calls to each kind of engine, and detecting what it can do."""
