"""Data sets of the Hugging Face Hub, or local folders of the same layout, read as a stream.

Only rows that are read are downloaded.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, line_of, suggestion
from common.hub import COMMIT

if TYPE_CHECKING:
    from datasets import IterableDataset

FIRST_ROWS = 100  # that `check` reads
DAMAGED = (
    ValueError,
    LookupError,
    NotImplementedError,
    EOFError,
    zlib.error,
    LZMAError,
)  # what readers of Parquet, JSON, CSV and archives raise


@dataclass(frozen=True)
class Source:
    """Rows of a data set: its name or folder, subset, files, split and revision."""

    dataset: str  # a name on the Hub, or a folder
    subset: str | None = None  # a configuration of the data set; None: its only one
    files: str | None = None  # a glob of the data set's files; None: all
    split: str = "train"
    revision: str | None = None  # a commit, branch or tag; unused for a folder

    @property
    def is_local(self) -> bool:
        """Tell whether it is a folder on this machine."""
        return Path(self.dataset).is_dir()


def open_stream(source: Source, key: str) -> IterableDataset:
    """Open the rows of a source, by file. `key` is the config key in messages.

    Raises BadInput if there is no such data set, subset, split or file, if it is gated and this account has no access,
    or if the Hub is unreachable.
    """
    import datasets

    # huggingface_hub repeats itself while it retries; datasets logs each error that it raises
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    dataset = source.dataset
    named = f"{key}.dataset={dataset}"
    try:
        return datasets.load_dataset(
            # a bare `text` or `json` would be a reader of `datasets`, for all files of the working directory
            str(Path(dataset).absolute()) if source.is_local else dataset,
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
                f"{named}: is gated. Accept its conditions at {where}, then run `hf auth login` or set HF_TOKEN."
            ) from None
        raise BadInput(
            f"{named}: no such data set or revision on the Hub, and no such folder here."
            " Check the name; for a private data set, run `hf auth login`."
        ) from None
    except FileNotFoundError:
        if source.files is None:
            raise BadInput(f"{named}: has no data file. Give a folder with Parquet or JSONL files.") from None
        raise BadInput(
            f"{named}: no data file matches {key}.files={source.files}. Set a pattern that matches."
        ) from None
    except StopIteration:  # of `datasets`, for files that are all empty
        raise BadInput(f"{named}: its files are empty. Give files with rows.") from None
    except ConnectionError as error:
        raise BadInput(
            f"{named}: the Hub is unreachable ({error}). Give a folder of the same layout to work offline."
        ) from None
    except (*DAMAGED, RuntimeError, OSError) as error:
        # subsets and splits; files whose content does not fit their names
        place = f"subset={source.subset or 'null'} split={source.split}"
        reason = line_of(error)[:300].rstrip(".")
        raise BadInput(
            f"{named} {place}: cannot be opened ({reason}). Check the files, or set another subset, split or files."
        ) from None


def check(source: Source, columns: Sequence[str], key: str) -> None:
    """Read the first rows of a source.

    Raises BadInput if they cannot be read, lack one of the text columns, or have no text there.
    """
    if not list(itertools.islice(rows(open_stream(source, key), columns, source, key), FIRST_ROWS)):
        raise BadInput(f"{key}.dataset={source.dataset}: has no rows. Choose another data set or split.")


def rows(
    stream: IterableDataset, columns: Sequence[str], source: Source, key: str, *, before: int = 0, file: str = ""
) -> Iterator[tuple[str, ...]]:
    """Yield the text of the given columns, row by row; a null column is an empty string.

    before: rows that the caller has skipped; file: the source's file of this stream, for messages. Raises BadInput for
    a row without a column, for a column without text, and for data that cannot be read.
    """
    where = f"{key}: {source.dataset}" + (f" {file}" if file else "")
    for number, row in enumerate(read(stream, source, key, before=before, file=file), start=before + 1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise BadInput(f"{key}: {source.dataset} has no column {missing[0]!r}. {suggestion(missing[0], row)}")
        wrong = [column for column in columns if not isinstance(row[column], str | None)]
        if wrong:
            kind = type(row[wrong[0]]).__name__
            raise BadInput(
                f"{where} row {number}: column {wrong[0]!r} must have text in every row, got {kind}."
                " Name another column, or convert this one."
            )
        yield tuple(row[column] or "" for column in columns)


def read(
    stream: Iterable[dict[str, Any]], source: Source, key: str, *, before: int = 0, file: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stream, with all of their columns.

    before, file: as in `rows`. Raises BadInput for files that are cut off, damaged or not UTF-8.
    """
    where = f"{key}: {source.dataset}" + (f" {file}" if file else "")
    iterator, number = iter(stream), before
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{where}: after row {number}: not UTF-8 ({error.reason}). Convert the file, for example with iconv."
            ) from None
        except TypeError as error:  # `datasets` casts every file to the columns of the first
            raise BadInput(
                f"{where}: after row {number}: a column changes its data type ({line_of(error)[:200]})."
                " Write all files with the same columns, text in those that are read."
            ) from None
        except (*DAMAGED, OSError) as error:
            if isinstance(error, OSError) and (error.errno or not source.is_local):  # the machine or the network
                raise
            raise BadInput(
                f"{where}: after row {number}: cannot be read ({line_of(error)[:200]})."
                " The file is cut off, damaged or not in UTF-8. Write it again."
            ) from None
        number += 1
        yield row


def commit_of(source: Source, key: str) -> str | None:
    """Return the commit of a source's revision; None for a folder.

    A full commit is returned without asking the Hub.
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
            f"{key}.revision={revision}: {source.dataset} has no such revision, or the Hub is "
            f"unreachable ({type(error).__name__}). "
            "Check the revision, or go online."
        ) from None


def data_files(folder: Path) -> list[Path]:
    """List the files of a local data set, without those of git and of the Hub's client."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
