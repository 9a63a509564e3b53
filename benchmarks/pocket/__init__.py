"""The pocket reasoning model: a task, a tokenizer, a trainer, an evaluation and the weights."""

__all__ = ["POLICY"]

POLICY = "deer(threshold=0.99, gate=0)"
"""A threshold belongs to a model: chosen on held-out problems of another seed (`benchmarks.quality
--seed 1`), never on those that are reported. No gate: this model's trial answers are six tokens
long and most first tokens pass, so a second request would cost more than it spares."""
