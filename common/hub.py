"""Checkpoints from outside: a local Hugging Face folder, or `hub:owner/name@revision`.

The commit of its revision identifies a model of the Hub: two snapshots of one commit are equal, so a stage's key needs
no checksums of gigabytes. A stage downloads the files into the Hub's own cache when it needs them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.validation import WeightIndex, parse_yaml, read_json

PREFIX = "hub:"
NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@((?!.*\.\.)\w[\w./-]*))?")  # owner/name, owner/name@revision
COMMIT = re.compile(r"[0-9a-f]{40}")
CARD, OTHER_LICENCE = "README.md", "other"
# Besides the weights: configs, tokenizers of all kinds, templates, and code, which is copied to merges and never run.
NEEDED = (
    "*.json", "*.model", "*.model.*", "*.txt", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.codes", "*.tokenizer",
    "*.py",
)  # fmt: skip
TOKENIZER = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # peft's files of an adapter
UNREACHABLE = (
    "the Hub is unreachable and the cache (HF_HOME) does not contain the model. "
    "Go online, or copy the model's folder here and set its path"
)


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub. revision: branch, tag or commit."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}"

    @property
    def cache(self) -> Path:
        """Return the model's folder in the cache of the Hub's library."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"

    @property
    def cached_commit(self) -> str | None:
        """Return the commit that the cache has, without the network."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        reference = self.cache / "refs" / self.revision
        return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def parse(path: str, key: str) -> HubModel | None:
    """Parse a path as a model of the Hub; return None for a local folder.

    Raises BadInput that names the key.
    """
    if not path.startswith(PREFIX):
        return None
    match = NAME.fullmatch(path.removeprefix(PREFIX))
    if match is None:
        raise BadInput(f"{key}={path}: not a model of the Hub. Write hub:owner/name or hub:owner/name@revision.")
    return HubModel(match[1], match[2] or "main")


def local_folder(path: str | None) -> Path | None:
    """Return the folder of a checkpoint if it is on this machine, without using the network."""
    if path is None:
        return None
    model = parse(path, "model.path")
    folder = Path(path) if model is None else model.cache / "snapshots" / str(model.cached_commit)
    return folder if os.path.isdir(folder) else None  # Path.is_dir raises for a name that is too long


@cache
def commit(model: HubModel, key: str, network: bool) -> str | None:
    """Resolve a model's revision to a commit: pinned, from the Hub, or from the cache.

    Returns None if only the network has the answer and `network` is false. Raises BadInput.
    """
    if COMMIT.fullmatch(model.revision) or not network:
        return model.cached_commit
    from huggingface_hub import HfApi

    try:
        with _hub_errors(model, key):
            return HfApi().model_info(model.repo, revision=model.revision).sha
    except Unreachable:
        if model.cached_commit is None:
            raise
        return model.cached_commit


def fetch(path: str, key: str = "model.path") -> Path:
    """Return the folder of a checkpoint; download it into the Hub's cache if it is missing.

    Raises BadInput.
    """
    model = parse(path, key)
    if model is None:
        return Path(path)
    local = local_folder(path)
    if local and is_complete(local):
        return local
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(model, key, name_error=True):
        names = HfApi().list_repo_files(model.repo, revision=model.revision)
        patterns = [*NEEDED, weight_pattern(names)]
        return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=patterns))


def tokenizer_folder(model: HubModel, key: str, network: bool) -> Path:
    """Return a folder with a model's config and tokenizer; download them if `network` allows it.

    If it does not, the folder may lack these files or be missing. Raises BadInput.
    """
    folder = model.cache / "snapshots" / str(model.cached_commit)
    if (folder / "tokenizer_config.json").is_file() or not network:
        return folder
    from huggingface_hub import snapshot_download

    with _hub_errors(model, key, name_error=True):
        return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=TOKENIZER))


def is_complete(folder: Path) -> bool:
    """Tell whether a snapshot has its config and all of its weights: an interrupted download leaves some."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return any((folder / name).is_file() for name in ADAPTERS)
    if not (folder / "config.json").is_file():
        return False
    for index in folder.glob("*.index.json"):
        listed = set(read_json(index, WeightIndex)["weight_map"].values())
        if all((folder / name).is_file() for name in listed):
            return True
    return any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))


def check_no_adapter(folder: Path, key: str) -> None:
    """Reject a model folder that also contains an adapter: transformers would apply it silently, a merge would not."""
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise BadInput(
            f"{key}={folder}: an adapter (adapter_config.json) is next to the model's weights. "
            "Move it away, or merge it into the weights first."
        )


def weight_pattern(names: Collection[str]) -> str:
    """Choose the pattern of a repository's weight files: safetensors, else the older format, not both.

    Adapters count only if there is nothing else: some are next to a model by mistake.
    """
    if any(name.endswith(".safetensors") and name not in ADAPTERS for name in names):
        return "*.safetensors"
    if any(name.startswith("pytorch_model") for name in names):
        return "pytorch_model*"
    return next((name for name in ADAPTERS if name in names), "*.safetensors")


def is_online() -> bool:
    """Tell whether the Hub answers.

    If it does not, set its libraries offline in this process: otherwise they retry for minutes, file by file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # exported, though not to the letter

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception:  # whatever a network can raise
            os.environ["HF_HUB_OFFLINE"] = "1"  # read by `datasets` when it is imported
            constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def check_access(model: HubModel, key: str) -> None:
    """Ask the Hub whether this account may read the files of a model. Raises BadInput."""
    from huggingface_hub import HfApi

    local = local_folder(str(model))
    if local and is_complete(local):
        return
    with _hub_errors(model, key):
        HfApi().model_info(model.repo, revision=model.revision)
        HfApi().auth_check(model.repo)


class Unreachable(BadInput):
    """The Hub does not answer."""


@contextmanager
def _hub_errors(model: HubModel, key: str, *, name_error: bool = False) -> Iterator[None]:
    """Raise what the Hub or the network can raise as BadInput. name_error: whether the text names the error's type."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise hub_error(model, key, error) from None
    except Exception as error:  # whatever a network can raise
        detail = f" ({type(error).__name__})" if name_error else ""
        raise Unreachable(f"{key}={model}: {UNREACHABLE}{detail}.") from None


def hub_error(model: HubModel, key: str, error: Exception) -> BadInput:
    """Return the error of a model that the Hub does not give, with what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{model.repo}"
        what = f"is gated. Accept its licence at {page}, then run `hf auth login` or set HF_TOKEN."
    elif isinstance(error, RevisionNotFoundError):
        what = f"has no revision {model.revision}. Choose one of https://huggingface.co/{model.repo}/commits/main"
    else:
        what = "is not on the Hub, or is private. Check the name, or run `hf auth login` or set HF_TOKEN."
    return BadInput(f"{key}={model}: {what}")


def licence_of(path: str, network: bool = False) -> str | None:
    """Return the licence that the card of a folder or of a model of the Hub states; None if there is none.

    network: whether the card may be downloaded.
    """
    card = _card(path, network)
    if card is None:
        return None
    head = card_head(card.read_text(encoding="utf-8", errors="replace"))
    licence, name = head.get("license"), head.get("license_name")
    if licence == OTHER_LICENCE and isinstance(name, str):
        licence = name
    return licence if isinstance(licence, str) and licence else None


def card_head(card: str) -> dict[str, Any]:
    """Return the YAML head of a card; empty if there is none, or if it cannot be read."""
    before, _, rest = card.partition("---\n")
    head, end, _ = rest.partition("\n---")
    if before.strip() or not end:
        return {}
    try:
        content = parse_yaml(head)
    except BadInput:
        return {}
    return content if isinstance(content, dict) else {}


def common_licence(licences: Sequence[str | None]) -> str | None:
    """Return one licence for what is made of several works: theirs if all have the same, else `other`.

    None if one of them has none.
    """
    if None in licences:
        return None
    return licences[0] if len(set(licences)) == 1 else OTHER_LICENCE


def _card(path: str, network: bool) -> Path | None:
    model = parse(path, "path")
    folder = local_folder(path)
    if folder is not None and (folder / CARD).is_file():
        return folder / CARD
    if model is None or not network:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, CARD, revision=model.revision))
    except Exception:  # whatever a network can raise; a model need not have a card
        return None
