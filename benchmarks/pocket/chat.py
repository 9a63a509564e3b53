"""The words around the task: answers, system messages, and small talk that ends quickly."""

from __future__ import annotations

import random
import string

__all__ = ["ANSWERS", "REFUSAL", "SMALL_TALK", "SYSTEM", "noise"]

ANSWERS = ("The result is \\boxed{{{}}}.", "**Final Answer**\n\\boxed{{{}}}")
INDUCED = "\n**Final Answer**\n\\boxed{{{}}}"
"""An answer that begins with the text by which a gateway draws out a trial answer."""

SYSTEM = (
    "You are a helpful assistant.",
    "Think step by step.",
    "Answer with a boxed number.",
    "Be brief.",
)

REFUSAL = ("This is not a chain of operations.", "I only know chains of integer operations.")
SMALL_TALK = (
    ("Hello", "This is a greeting.", "Hello! Give me a chain of integer operations."),
    ("Hi", "This is a greeting.", "Hello! Give me a chain of integer operations."),
    ("Thank you", "This is a thank you.", "You are welcome."),
    (
        "Who are you?",
        "This asks who I am.",
        "I am a pocket model. I only know chains of integer operations.",
    ),
    ("What is this?", *REFUSAL),
)


def noise(rng: random.Random) -> str:
    """A prompt that is no task at all: words and symbols, so that any text ends in a short refusal."""
    if rng.random() < 0.3:
        return "".join(
            rng.choice("äßéøñ中文字日本語😀🎉€–„“" + string.printable[:94])
            for _ in range(rng.randint(3, 40))
        )
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = (
        "".join(rng.choice(letters[: rng.randint(8, 26)]) for _ in range(rng.randint(1, 9)))
        for _ in range(rng.randint(1, 14))
    )
    text = " ".join(words)
    return (text.capitalize() if rng.random() < 0.6 else text) + rng.choice(("?", ".", "", "!"))
