"""Settings of the tests. A run is the same run everywhere; ``HYPOTHESIS_PROFILE=hunt`` looks for
what nobody has seen yet."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("house", max_examples=100, derandomize=True, database=None, **_COMMON)
settings.register_profile("hunt", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

pytest_plugins = ["tests.fixtures"]
