"""The pocket reasoning model, trained on one task or another: tasks, trainer, evaluation and weights."""

from benchmarks.pocket.chains import CHAINS
from benchmarks.pocket.swaps import SWAPS

__all__ = ["CHAINS", "SWAPS", "TASKS"]

TASKS = {task.name: task for task in (CHAINS, SWAPS)}
"""By name."""
