"""The pocket reasoning model: a task, a tokenizer, a trainer, an evaluation and the weights."""

__all__ = ["POLICY"]

POLICY = "deer(threshold=0.99, gate=0)"
"""A threshold belongs to a model: chosen on held-out problems of another seed (`benchmarks.quality
--seed 1`), never on those that are reported. The gate is off because a trial answer here is six
tokens long: a request that spares it costs more than it does."""
