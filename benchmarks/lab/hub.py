"""Datasets of the Hugging Face hub, by name.

We read the Parquet copy that the hub makes of every dataset, so no code of a dataset is executed.
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
    """Prompts that cannot be read; the message says why and what to do."""


def dataset_files(name: str, subset: str | None, split: str | None) -> tuple[str, list[Path]]:
    """The name of a split of ``OWNER/DATASET``, and its files, downloaded unless they are cached.

    A ``subset`` or ``split`` of None selects the only one, or the most usual. Raises BadPrompts.
    """
    with require_hub_extra():
        from huggingface_hub import HfApi, constants, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    fetch = partial(hf_hub_download, name, repo_type="dataset", revision=_PARQUET_REVISION)
    try:
        siblings = HfApi().dataset_info(name, revision=_PARQUET_REVISION).siblings or []
        files = [PurePosixPath(file.rfilename) for file in siblings]
        split, selected = _select_files(name, files, subset, split)
        return split, [Path(fetch(str(file))) for file in selected]
    except HFValidationError:
        raise BadPrompts(f"{name!r} is not the name of a dataset: write hf:OWNER/DATASET") from None
    except HfHubHTTPError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadPrompts(f"hf:{name}: {reason or type(error).__name__}") from None
    except BadPrompts:
        raise
    except Exception as error:  # the hub library has changed its HTTP client, and so its errors
        raise BadPrompts(
            f"hf:{name}: the hub at {constants.ENDPOINT} can't be reached ({error}). Set "
            "HF_ENDPOINT to a mirror, or give a JSONL, CSV or Parquet file"
        ) from None


def _select_files(
    name: str, files: Sequence[PurePosixPath], subset: str | None, split: str | None
) -> tuple[str, list[PurePosixPath]]:
    """The split and its files, whose paths are SUBSET/SPLIT/NUMBER.parquet."""
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
    names = list(dict.fromkeys(found))
    if given in names:
        return given
    likely = [name for name in usual if name in names] or (names if len(names) == 1 else [])
    if given is None and likely:
        return likely[0]
    problem = f"no {kind} {given!r}" if given else f"name a --{kind}"
    raise BadPrompts(f"{where}: {problem}: there are {', '.join(names) or 'none'}")


@contextlib.contextmanager
def require_hub_extra() -> Iterator[None]:
    """Imports in this block need the extra ``hub``: say how to install it if one fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        command = "pip install 'adjourn[hub]'"
        raise BadPrompts(f"{error.name} is not installed: run `{command}`") from None
