"""python -m benchmarks.standin: serve until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json

from benchmarks.standin.engine import StandinEngine
from benchmarks.standin.scenario import Scenario


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8200, help="0: any free port (default: 8200)")
    parser.add_argument("--rate", type=float, default=0.0, help="tokens per second; 0: unpaced")
    parser.add_argument("--tokens", type=int, default=512, help="reasoning tokens (default: 512)")
    parser.add_argument("--model", default="standin")
    parser.add_argument("--max-model-len", type=int, default=65_536)
    parser.add_argument(
        "--scenario",
        type=json.loads,
        default={},
        metavar="JSON",
        help="other fields of scenario.py",
    )
    options = parser.parse_args()
    scenario = Scenario(tokens=options.tokens, rate=options.rate).updated(options.scenario)
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        engine = StandinEngine(scenario, options.model, options.max_model_len)
        run(engine.serve(options.host, options.port))


if __name__ == "__main__":
    main()
