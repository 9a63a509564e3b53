"""Test settings. By default Hypothesis generates the same examples in every run;
``HYPOTHESIS_PROFILE=hunt`` searches new random examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile(
    "reproducible", max_examples=100, derandomize=True, database=None, **_COMMON
)
settings.register_profile("hunt", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))

pytest_plugins = ["tests.fixtures"]
