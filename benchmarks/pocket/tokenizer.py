"""The tokenizer of a task's model: byte-level BPE, trained on texts of the task."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

from benchmarks.pocket.task import Task, choose_weighted

__all__ = ["build", "load", "save"]


def build(task: Task, seed: int = 0):
    """Train a tokenizer. Takes some seconds."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special, markers = task.chat.special_tokens, task.chat.marker_tokens
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(task.pretokenizer_pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=task.size.vocabulary_size - len(special) - len(markers),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(task, random.Random(seed)), trainer)
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in markers])
    return tokenizer


def load(folder: Path):
    """The tokenizer in a model folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def save(tokenizer, task: Task, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": task.chat.stop_token,
        "pad_token": task.chat.special_tokens[0],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": task.chat.template,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    )


def _corpus(task: Task, rng: random.Random):
    texts = task.texts
    for problem in islice(task.training_problems(rng), 4000):
        yield problem.prompt
        yield "".join(piece.text for piece in task.write_trace(problem, rng))
        yield choose_weighted(rng, texts.answers + texts.induced).format(problem.answer)
    for _ in range(100):
        for prompt, thinking, answer in texts.small_talk:
            yield f"{prompt}\n{thinking}\n{answer}"
        yield "user\nassistant\nsystem\n" + "".join(texts.system) + texts.cues
