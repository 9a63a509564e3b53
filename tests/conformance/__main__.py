"""``make conformance``: every client at every place, and docs/compatibility.md of what came.

With names of suites only those are run, and the page is made with what the others found before.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path

from benchmarks.services import ROOT
from tests.conformance.compare import Line
from tests.conformance.places import places
from tests.conformance.suites import BUILT, SUITES, Suite, run
from tests.conformance.table import Reasons, document, rows

PAGE = ROOT / "docs" / "compatibility.md"
FOUND = BUILT / "found"
LOGS = BUILT / "logs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(names))
    parser.add_argument("--page", action="store_true", help="run nothing, make the page")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(names):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    for folder in (FOUND, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.page:
        _run([s for s in SUITES if s.name in options.suites or not options.suites])
    return _write()


def _run(suites: list[Suite]) -> None:
    chosen = sorted(suites, key=lambda suite: suite.upstream)
    for upstream, those in groupby(chosen, key=lambda suite: suite.upstream):
        with places(upstream) as found:
            for suite in those:
                print(f"{suite.client} …", flush=True)
                lines = run(suite, found, LOGS)
                (FOUND / f"{suite.name}.json").write_text(json.dumps(lines, indent=1))


def _found(suite: Suite) -> dict[str, list[Line]]:
    file = FOUND / f"{suite.name}.json"
    found: dict[str, list[Line]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _write() -> int:
    """The page; 1 where a cell lacks a reason, or a reason its cell."""
    table = [row for suite in SUITES for row in rows(suite.client, _found(suite))]
    reasons = Reasons.read(Path(__file__).parent / "reasons.toml")
    page, unexplained = document(table, reasons)
    PAGE.write_text(page, "utf-8")
    green = sum(cell.good for row in table for cell in row.cells.values())
    print(f"{green} of {3 * len(table)} cells are green: {PAGE.relative_to(ROOT)}")
    for cell in unexplained:
        print(f"not explained: {cell}", file=sys.stderr)
    for why in reasons.idle():
        print(f"a reason that no cell needs: {why}", file=sys.stderr)
    return 1 if unexplained or reasons.idle() else 0


if __name__ == "__main__":
    sys.exit(main())
