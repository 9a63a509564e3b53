"""Record the golden recordings again: ``python -m tests.lab.golden URL [NAME …]``."""

from __future__ import annotations

import sys

import msgspec

from adjourn.lab import serialization
from benchmarks.pocket import CHAINS
from tests.lab.gateway_sessions import decisions, run_through_gateway
from tests.lab.golden import FOLDER

POLICIES = {
    "deer": "deer(threshold=0.9)",
    "convergence": "convergence(effort='max')",
    "composed": "any_of(deer(threshold=0.999, gap=0), budget(max=400))",
}

for name in sys.argv[2:] or POLICIES:
    policy = POLICIES[name]
    bodies = [
        {
            "model": "pocket",
            "messages": [{"role": "user", "content": problem.prompt}],
            "temperature": 0,
            "max_tokens": 900,
        }
        for problem in CHAINS.held_out_problems(5, 3)
    ]
    sessions = run_through_gateway(sys.argv[1], policy, bodies)
    document = {
        "policy": policy,
        "dialect": serialization.to_json_value(sessions[0].dialect),
        "requests": [{"events": s.events, "decisions": decisions(s)} for s in sessions],
    }
    (FOLDER / f"{name}.json").write_bytes(msgspec.json.encode(document) + b"\n")
