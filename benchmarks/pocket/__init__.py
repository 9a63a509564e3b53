"""The pocket reasoning model: a task, a tokenizer, a trainer, an evaluation and the weights."""
