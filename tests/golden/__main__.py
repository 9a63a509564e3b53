"""Print what a recording replays to: ``python -m tests.golden NAME``."""

from __future__ import annotations

import json
import sys

from tests.golden import recordings, replay

print(json.dumps(replay(recordings()[sys.argv[1]]), indent=1))
