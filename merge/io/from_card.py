"""Rebuild a merge from its card: recipe, present folders of the models, and checksums to compare with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import hub
from common.errors import BadInput, suggestion, user_errors
from common.files import sha256
from common.validation import parse_yaml
from merge.recipe import Recipe

LARGEST = 10_000_000  # bytes of a card
_RECIPE = re.compile(r"^## How to make it again$.*?^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CHECKSUM = re.compile(r"^- (read|written) `([^`\n]+)`: ([0-9a-f]{64})$", re.MULTILINE)
_SHARDS = re.compile(r"^    slackmerge merge .*--shard-size (\d{1,18})B$", re.MULTILINE)
_FOLDERS = ("base", "path", "adapter")  # keys that name one


@dataclass(frozen=True)
class Card:
    """The content of a merge's card.

    read, written: sha256 by `model/file` and by file. folders: present folders of the models, by their names on the
    card. shard_bytes: size of the largest file, if it was set.
    """

    path: Path
    recipe: Recipe
    read: dict[str, str]
    written: dict[str, str]
    folders: dict[str, str]
    shard_bytes: int | None

    def check_models(self) -> None:
        """Reject models whose files differ from the merged ones; reads all of them."""
        files = {}
        for name in self.read:
            model, _, file = name.rpartition("/")
            if model not in self.folders:
                raise BadInput(
                    f"{self.path}: has a checksum of {name!r}, but no such model. Use the card as slackmerge wrote it."
                )
            files[name] = hub.fetch(self.folders[model], model) / file
        with ThreadPoolExecutor() as pool:
            for name, found in zip(files, pool.map(_digest, files.values()), strict=True):
                if found != self.read[name]:
                    raise BadInput(
                        f"{files[name]}: its sha256 differs from that of {name} in {self.path}. "
                        "Find that version of the model."
                    )

    def check_result(self, folder: Path) -> None:
        """Reject a result that differs from the card's in any bit."""
        for name, expected in self.written.items():
            if _digest(folder / name) != expected:
                raise BadInput(
                    f"{folder / name}: its sha256 differs from that in {self.path}. The merge is complete, but another "
                    "version of slackmerge or torch, or another kind of machine, gives other bytes."
                )


def read_card(path: Path, given: Sequence[str]) -> Card:
    """Read the card at `path`; given: `name=folder` for models that are neither on the Hub nor next to the card.

    Raises BadInput for a file that is not a card of ours, and for models that are not found.
    """
    with user_errors():
        if not path.is_file():
            raise BadInput(f"{path}: no such file; expected the README.md of a merge.")
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{path}: expected the README.md of a merge, got more than {LARGEST / 1e6:.0f} MB.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{path}: expected the README.md of a merge, got text that is not UTF-8.") from None
    match, checksums = _RECIPE.search(text), _CHECKSUM.findall(text)
    if match is None:
        raise BadInput(f"{path}: has no recipe under '## How to make it again'; expected the README.md of a merge.")
    read, written = ({name: digest for kind, name, digest in checksums if kind == k} for k in ("read", "written"))
    if not read or not written:
        raise BadInput(f"{path}: has no checksums (--no-checksums?). Make the merge from its merge.yml.")
    if any("/" in name or name in (".", "..") for name in written):
        raise BadInput(f"{path}: its checksums name files in other folders. Use the card as slackmerge wrote it.")
    try:
        data = parse_yaml(match[1])
    except BadInput as error:
        raise BadInput(f"{path}: its recipe is not YAML: {error}") from None
    finder = _Finder(path, given)
    recipe = Recipe.from_dict(finder.found(data), where=str(path))
    finder.check_given()
    shards = _SHARDS.search(text)
    return Card(path, recipe, read, written, finder.folders, int(shards[1]) if shards else None)


class _Finder:
    """Replace the names of models by folders. A local name is looked up in the card's folder and its parents."""

    def __init__(self, card: Path, given: Sequence[str]):
        self.card = card
        self.folders: dict[str, str] = {}
        self.given: dict[str, str] = {}
        for text in given:
            name, equals, place = text.partition("=")
            if not (name and equals and place):
                raise BadInput(f"--model {text}: expected NAME=FOLDER, with the model's name on the card.")
            self.given[name] = place

    def found(self, entry: Any) -> Any:
        """Return `entry`, a recipe or a part of one, with folders."""
        if not isinstance(entry, Mapping):
            return entry
        out = {key: self._place(value) if key in _FOLDERS else value for key, value in entry.items()}
        if isinstance(models := out.get("models"), Mapping):
            out["models"] = {name: self.found(model) for name, model in models.items()}
        if isinstance(slices := out.get("slices"), list):
            out["slices"] = [self.found(part) for part in slices]
        return out

    def _place(self, name: Any) -> Any:
        if not isinstance(name, str) or not name or "\0" in name:
            return name  # parsing the recipe reports what is wrong with it
        model = hub.parse(name, str(self.card))
        short = name if model is None else model.repo
        if short not in self.folders:
            self.folders[short] = self.given.get(short) or (name if model is not None else self._near(name))
        return self.folders[short]

    def _near(self, name: str) -> str:
        for folder in self.card.absolute().parents:
            if (folder / name).is_dir():
                return str(folder / name)
        raise BadInput(f"{self.card}: model {name!r} is not next to the card. Pass --model {name}=FOLDER.")

    def check_given(self) -> None:
        """Reject folders for models that are not on the card."""
        if unknown := next((name for name in self.given if name not in self.folders), None):
            raise BadInput(f"--model {unknown}: the card has no such model. {suggestion(unknown, self.folders)}")


def _digest(file: Path) -> str:
    with user_errors():
        if not file.is_file():
            raise BadInput(f"{file}: no such file, but the card has its checksum. Find that version of the model.")
        return sha256(file)
