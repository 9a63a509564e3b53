"""Print the outcome of a recording's replay: ``python -m tests.golden NAME``."""

from __future__ import annotations

import json
import sys

from tests.golden import races, recordings, replay, replay_race

name = sys.argv[1]
outcome = replay_race(races()[name]) if name in races() else replay(recordings()[name])
print(json.dumps(outcome, indent=1))
