"""``make conformance``: every client at every place, and docs/compatibility.md of what came.

With names of suites, or a pattern of features, only those are run; the page is made with what the
others found before, which is kept in tests/conformance/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby

from tests.conformance.places import places
from tests.conformance.results import Result, read, write
from tests.conformance.suites import BUILT, SUITES, Found, Suite, run
from tests.conformance.table import PAGE, REASONS, Reasons, document, rows

REPLIES = BUILT / "replies"
LOGS = BUILT / "logs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(names))
    parser.add_argument(
        "--only", metavar="REGEX", default="", help="features in whose names this is found"
    )
    parser.add_argument("--page", action="store_true", help="run nothing, make the page")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(names):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    for folder in (REPLIES, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.page:
        chosen = [s for s in SUITES if s.name in options.suites or not options.suites]
        _run(chosen, options.only)
    return _write()


def _run(suites: list[Suite], only: str) -> None:
    """Each suite's results are written as soon as they are there."""
    for upstream, those in groupby(sorted(suites, key=_upstream), key=_upstream):
        with places(upstream) as (engine, found):
            for suite in those:
                print(f"{suite.client} …", flush=True)
                replies = run(suite, found, LOGS, only)
                _keep(suite, replies)
                made = Result(engine, suite.version(), rows(replies))
                write(suite.name, read(suite.name).updated(made) if only else made)


def _upstream(suite: Suite) -> str:
    return suite.upstream


def _keep(suite: Suite, replies: Found) -> None:
    """Who wonders about a cell looks here."""
    (REPLIES / f"{suite.name}.json").write_text(json.dumps(replies, indent=1))


def _write() -> int:
    """The page; 1 where a cell lacks a reason, or a reason its cell."""
    results = {suite.client: read(suite.name) for suite in SUITES}
    reasons = Reasons.read(REASONS)
    page, unexplained = document(results, reasons)
    PAGE.write_text(page, "utf-8")
    for cell in unexplained:
        print(f"not explained: {cell}", file=sys.stderr)
    for why in reasons.idle():
        print(f"a reason that no cell needs: {why}", file=sys.stderr)
    return 1 if unexplained or reasons.idle() else 0


if __name__ == "__main__":
    sys.exit(main())
