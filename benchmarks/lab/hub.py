"""Datasets of the Hugging Face hub, by name.

It makes a Parquet copy of every one of them, and that is read, so that no dataset's own code runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

__all__ = ["BadPrompts", "dataset_files", "require_hub_extra"]

_PARQUET_REVISION = "refs/convert/parquet"
_DEFAULT_SUBSETS = ("default", "main")
_DEFAULT_SPLITS = ("test", "validation", "train")


class BadPrompts(ValueError):
    """Prompts that cannot be read; the message says why, and what would be."""


def dataset_files(name: str, subset: str | None, split: str | None) -> tuple[str, list[Path]]:
    """A split of ``OWNER/DATASET`` and its files, fetched where they are not cached.

    Where no subset or split is named, the only one is taken, or the most usual. Raises BadPrompts.
    """
    with require_hub_extra():
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    fetch = partial(hf_hub_download, name, repo_type="dataset", revision=_PARQUET_REVISION)
    try:
        there = HfApi().dataset_info(name, revision=_PARQUET_REVISION).siblings or []
        files = [PurePosixPath(file.rfilename) for file in there]
        chosen, wanted = _select_files(name, files, subset, split)
        return chosen, [Path(fetch(str(file))) for file in wanted]
    except HFValidationError:
        raise BadPrompts(f"{name!r} is no dataset's name: write hf:OWNER/DATASET") from None
    except HfHubHTTPError as error:
        told = str(error).strip().partition("\n")[0]
        raise BadPrompts(f"hf:{name}: {told or type(error).__name__}") from None
    except BadPrompts:
        raise
    except Exception as error:  # which HTTP client it is, and so its errors, changes
        raise BadPrompts(
            f"hf:{name}: the hub at {constants.ENDPOINT} can't be reached ({error}). HF_ENDPOINT "
            "names a mirror of it; a JSONL, CSV or Parquet file needs no hub"
        ) from None


def _select_files(
    name: str, files: Sequence[PurePosixPath], subset: str | None, split: str | None
) -> tuple[str, list[PurePosixPath]]:
    """Files lie at SUBSET/SPLIT/NUMBER.parquet."""
    tables = [file for file in files if file.suffix == ".parquet" and len(file.parts) == 3]
    subset = _select_name(
        f"hf:{name}", "subset", subset, _DEFAULT_SUBSETS, (file.parts[0] for file in tables)
    )
    tables = [file for file in tables if file.parts[0] == subset]
    split = _select_name(
        f"hf:{name}", "split", split, _DEFAULT_SPLITS, (file.parts[1] for file in tables)
    )
    return split, sorted(file for file in tables if file.parts[1] == split)


def _select_name(
    where: str, kind: str, given: str | None, usual: Sequence[str], found: Iterator[str]
) -> str:
    there = list(dict.fromkeys(found))
    if given in there:
        return given
    likely = [name for name in usual if name in there] or (there if len(there) == 1 else [])
    if given is None and likely:
        return likely[0]
    wrong = f"no {kind} {given!r}" if given else f"name a --{kind}"
    raise BadPrompts(f"{where}: {wrong}: there are {', '.join(there) or 'none'}")


@contextlib.contextmanager
def require_hub_extra() -> Iterator[None]:
    """What is imported within may not be installed: say what would bring it."""
    try:
        yield
    except ModuleNotFoundError as error:
        brings = "`pip install 'adjourn[hub]'` brings it"
        raise BadPrompts(f"{error.name} is not installed: {brings}") from None
