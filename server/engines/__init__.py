"""Engine adapters: what each kind of engine can do, and how it is asked."""
