"""The pocket reasoning model, one per task: tasks, training, evaluation and weights."""

from benchmarks.pocket.chains import CHAINS
from benchmarks.pocket.swaps import SWAPS

__all__ = ["CHAINS", "SWAPS", "TASKS"]

TASKS = {task.name: task for task in (CHAINS, SWAPS)}
"""Tasks by name."""
