"""``make conformance``: run every client against every target, and write docs/compatibility.md.

With names of suites, or a pattern of features, only those are run; the page then contains the
earlier results of the others, which are stored in tests/conformance/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby

from tests.conformance.results import SuiteResult, load_result, save_result
from tests.conformance.suites import BUILD_FOLDER, SUITES, ReportsByTarget, Suite, run_suite
from tests.conformance.table import (
    PAGE_PATH,
    REASONS_PATH,
    Reasons,
    render_page,
    verdicts_by_feature,
)
from tests.conformance.targets import start_targets

REPLIES_FOLDER = BUILD_FOLDER / "replies"
LOGS_FOLDER = BUILD_FOLDER / "logs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(names))
    parser.add_argument(
        "--only", metavar="REGEX", default="", help="run only features whose name matches"
    )
    parser.add_argument("--page", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(names):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    for folder in (REPLIES_FOLDER, LOGS_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.page:
        chosen = [s for s in SUITES if s.name in options.suites or not options.suites]
        _run_suites(chosen, options.only)
    return _write_page()


def _run_suites(suites: list[Suite], only: str) -> None:
    """Run suites by upstream; saves each suite's results as soon as it is complete."""
    for upstream, upstream_suites in groupby(sorted(suites, key=_upstream_of), key=_upstream_of):
        with start_targets(upstream) as (engine, target_urls):
            for suite in upstream_suites:
                print(f"{suite.client} …", flush=True)
                reports = run_suite(suite, target_urls, LOGS_FOLDER, only)
                _save_replies(suite, reports)
                result = SuiteResult(engine, suite.version(), verdicts_by_feature(reports))
                save_result(
                    suite.name, load_result(suite.name).merged_with(result) if only else result
                )


def _upstream_of(suite: Suite) -> str:
    return suite.upstream


def _save_replies(suite: Suite, replies: ReportsByTarget) -> None:
    """Save the raw replies, to investigate a cell of the page."""
    (REPLIES_FOLDER / f"{suite.name}.json").write_text(json.dumps(replies, indent=1))


def _write_page() -> int:
    """Write the page. Returns 1 if a cell lacks a reason or a reason has no cell, else 0."""
    results = {suite.client: load_result(suite.name) for suite in SUITES}
    reasons = Reasons.load(REASONS_PATH)
    page, unexplained = render_page(results, reasons)
    PAGE_PATH.write_text(page, "utf-8")
    for cell in unexplained:
        print(f"no reason given: {cell}", file=sys.stderr)
    for why in reasons.unused():
        print(f"unused reason: {why}", file=sys.stderr)
    return 1 if unexplained or reasons.unused() else 0


if __name__ == "__main__":
    sys.exit(main())
