"""Data sets of the Hugging Face hub, or local folders of the same layout, read as a stream.

Only what is read is downloaded.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.hub import COMMIT

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class Source:
    """Which rows of which data set."""

    dataset: str  # a name on the hub, or a folder
    subset: str | None = None  # a configuration of the data set; None: its only one
    files: str | None = None  # a glob of the data set's files; None: all
    split: str = "train"
    revision: str | None = None  # a commit, branch or tag; not asked of a folder

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.dataset).is_dir()


def open_stream(source: Source, key: str) -> IterableDataset:
    """The rows of a source, by file. `key` is the config key that names it in refusals.

    Raises BadInput where there is no such data set, subset, split or file, where it is gated and this account has no
    access, or where the hub cannot be reached.
    """
    import datasets

    for name in ("datasets", "huggingface_hub"):  # they repeat themselves while they retry
        logging.getLogger(name).setLevel(logging.ERROR)
    dataset = source.dataset
    named = f"{key}.dataset={dataset}"
    try:
        return datasets.load_dataset(
            dataset,
            source.subset,
            data_files=source.files,
            split=source.split,
            revision=None if source.is_local else source.revision,
            streaming=True,
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            where = f"https://huggingface.co/datasets/{dataset}"
            raise BadInput(
                f"{named} is gated: accept its conditions at {where}, then say `hf auth login` or set HF_TOKEN"
            ) from None
        raise BadInput(
            f"{named}: no such data set or revision on the hub, and no such folder here;"
            " a private one needs `hf auth login`"
        ) from None
    except FileNotFoundError:
        raise BadInput(f"{named}: it has no data files that match {key}.files={source.files}") from None
    except ConnectionError as error:
        raise BadInput(
            f"{named}: the hub cannot be reached ({error}); give a folder of the same layout to work offline"
        ) from None
    except (ValueError, RuntimeError, OSError) as error:
        # which subsets and splits there are; files that are not what their names say
        raise BadInput(
            f"{named} subset={source.subset} split={source.split}: {' '.join(str(error).split())[:300]}"
        ) from None


def check(source: Source, columns: Sequence[str], key: str) -> None:
    """Reads one row of a source.

    Raises BadInput, in one line, where it cannot be read or lacks one of the text columns.
    """
    for _ in rows(open_stream(source, key), columns, source, key):
        return
    raise BadInput(f"{key}.dataset={source.dataset}: holds no rows")


def rows(stream: IterableDataset, columns: Sequence[str], source: Source, key: str) -> Iterator[tuple[str, ...]]:
    """Yield the text of the given columns, row by row; rows where one is null are empty strings there.

    Raises BadInput for a column that is missing or holds something else than text, and for data that cannot be read.
    """
    for number, row in enumerate(_readable(stream, source, key), start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise BadInput(f"{key}: {source.dataset} has no column {missing[0]!r} (it has {', '.join(row)})")
        for column in columns:
            if not isinstance(row[column], str | None):
                raise BadInput(
                    f"{key}: {source.dataset} row {number}: column {column!r} holds text in every row,"
                    f" got {type(row[column]).__name__}. Name another column, or convert this one."
                )
        yield tuple(row[column] or "" for column in columns)


def _readable(stream: IterableDataset, source: Source, key: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream. Raises BadInput if one of its files is cut off, or is not what its name says."""
    try:
        yield from stream
    except (ValueError, RuntimeError, OSError, LookupError) as error:  # pyarrow's and datasets' errors are among these
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # its cache: not the data's fault
            raise
        told = " ".join(str(error.__cause__ or error).split())[:200]
        raise BadInput(
            f"{key}: {source.dataset} cannot be read to its end: {type(error).__name__}: {told}."
            " Write the damaged file again; text files must be UTF-8."
        ) from None


def commit_of(source: Source, key: str) -> str | None:
    """The commit that a source's revision stands for; None for a folder.

    A full commit stands for itself, without a question to the hub.
    """
    revision = source.revision
    if source.is_local:
        return None
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().dataset_info(source.dataset, revision=revision).sha
    except (HfHubHTTPError, OSError) as error:
        raise BadInput(
            f"{key}.revision={revision}: {source.dataset} has none such that can be reached ({type(error).__name__})"
        ) from None


def data_files(folder: Path) -> list[Path]:
    """The files of a local data set, those that git or a hub client keeps for itself left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
