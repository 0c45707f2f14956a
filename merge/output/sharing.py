"""Choose what of a model folder is published: weights, config, tokenizer, card and recipe, without local paths.

Other files (trainer states, notes, keys) stay here. merge.yml gets short names for its folders, as in the card of a
merge; an adapter's config names its base by the base's id on the Hub."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from common import hub, hub_push
from common.errors import BadInput, user_errors
from common.hub_push import Target
from common.validation import read_json, read_yaml_documents
from merge.checkpoints.sidecars import code_of, sidecars, within

CARD, RECIPE, ADAPTER = "README.md", "merge.yml", "adapter_config.json"
NOTES = (CARD, "LICENSE*", "NOTICE*", "USE_POLICY*", RECIPE, "audit.json", "audit.parquet")
FOLDERS = ("path", "base", "adapter")  # keys of a recipe that name one
BASE = "base_model_name_or_path"  # of an adapter's config
# Keys of configs in which older versions of transformers leave the folder that a model was read from.
PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file")
ROOTS = (
    "content", "data", "dev", "gpfs", "home", "kaggle", "lustre", "media", "mnt", "nfs", "opt", "private", "project",
    "projects", "root", "scratch", "srv", "storage", "tmp", "Users", "usr", "var", "Volumes", "work", "workspace",
)  # fmt: skip
_PATH = re.compile(r"(?<![\w/:.~<\]-])(?:file://)?/([^\s/`'\"<>|()\[\]{},;:]+)/[^\s`'\"<>|()\[\]{},;]*")
_OTHER = re.compile(r"(?<![\w/])(?:~/|[A-Za-z]:\\)[^\s`'\"<>|()\[\]{},;]+")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)")


@dataclass(frozen=True)
class Shared:
    """The files of a folder by their paths on the Hub: their local path, or their text if it differs there.

    left_out: files of the folder that are not shared. adapter_of: the base's id, of an adapter.
    """

    folder: Path
    files: Mapping[str, Path | str]
    left_out: tuple[str, ...]
    adapter_of: str | None = None

    def bytes_of(self, name: str) -> int:
        """Return the size of a file as it will be on the Hub."""
        content = self.files[name]
        return len(content.encode()) if isinstance(content, str) else content.stat().st_size

    def put(self, staging: Path) -> None:
        """Lay the files out in an empty folder: links to those that are as they are here, and the changed ones."""
        for name, content in self.files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                (staging / name).write_text(content, encoding="utf-8")
            else:
                (staging / name).symlink_to(content.resolve())


def share(folder: Path, base: str | None = None, card: str | None = None) -> Shared:
    """Choose and rewrite the files of a checkpoint folder.

    base: the id on the Hub of an adapter's base, if its config has none. card: the text of README.md, if it is not the
    folder's own. Raises BadInput for what is no whole model, and for a card that names paths of this machine.
    """
    with user_errors():
        adapter = _check(folder)
        if base is not None and not adapter:
            raise BadInput(f"--base: is for adapters, but {folder} is a model, got {base}. Leave it out.")
        chosen = {file.relative_to(folder).as_posix(): file for file in within(folder, _listed(folder, adapter))}
        files: dict[str, Path | str] = dict(sorted(chosen.items()))
        files |= {name: text for name, file in chosen.items() if (text := _without_places(file)) is not None}
        adapter_of = None
        if adapter:
            adapter_of, files[ADAPTER] = _with_base(folder / ADAPTER, base)
        if RECIPE in files:
            files[RECIPE] = _with_short_names(folder / RECIPE)
        if card is not None:
            files[CARD] = card
        if CARD in files:
            _check_card(folder / CARD, files[CARD])
        here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return Shared(folder, dict(sorted(files.items())), tuple(sorted(here - files.keys())), adapter_of)


def upload(shared: Shared, target: Target, message: str) -> str:
    """Put the files on the Hub, and return their address. Raises BadInput; nothing is changed there then."""
    with TemporaryDirectory(prefix="slackmerge-push-") as staging:
        shared.put(Path(staging))
        hub_push.check(target, Path(staging))
        return hub_push.push(Path(staging), target, message)


def _check(folder: Path) -> bool:
    """Tell whether a folder is an adapter's. Raises BadInput for an incomplete model."""
    if not folder.is_dir():
        raise BadInput(f"FOLDER: no such folder, got {folder}. Pass a folder with a config.json, or KIND and SLUG.")
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        inner = next((name for name in ("model", "adapter") if (folder / name).is_dir()), None)
        advice = f"Pass {folder / inner}" if inner else "Pass the folder of a model or of an adapter"
        raise BadInput(f"FOLDER: holds no model (no config.json, no {ADAPTER}), got {folder}. {advice}.")
    hub.check_no_adapter(folder, "FOLDER")
    if not hub.is_complete(folder):
        raise BadInput(f"FOLDER: the weights are missing or incomplete, got {folder}. Write or copy all of them.")
    return (folder / ADAPTER).is_file()


def _listed(folder: Path, adapter: bool) -> Iterator[Path]:
    """Yield the files that are shared, in no order."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    weights = hub.ADAPTERS if adapter else (hub.weight_pattern(names), "*.index.json", "config.json")
    for pattern in (*weights, *([ADAPTER] if adapter else []), *NOTES):
        yield from (file for file in folder.glob(pattern) if file.is_file())
    yield from (*sidecars(folder), *code_of(folder))


def _with_base(file: Path, base: str | None) -> tuple[str, str]:
    """Return the id of an adapter's base, and the config with it. Raises BadInput if the base has only a local path."""
    config = read_json(file)
    named = config.get(BASE)
    model = named if isinstance(named, str) else ""
    revision = config.get("revision")
    if base is not None:
        if not (match := hub.NAME.fullmatch(base)):
            raise BadInput(f"--base: not a model of the Hub, got {base}. Pass OWNER/NAME.")
        model, revision = match[1], match[2]
    elif snapshot := _SNAPSHOT.search(model):
        model, revision = f"{snapshot[1]}/{snapshot[2]}", snapshot[3]
    elif not (match := hub.NAME.fullmatch(model)) or Path(model).is_dir():
        raise BadInput(
            f"{file}: {BASE} is no model of the Hub, got {model or 'nothing'}. "
            "Push the base first, then pass --base OWNER/NAME."
        )
    return model, _json({**config, BASE: model, "revision": revision})


def _without_places(file: Path) -> str | None:
    """Return the text of a config without the folder that it was read from; None if it has none."""
    if not file.name.endswith("config.json"):
        return None
    config = read_json(file)
    local = [key for key in PLACES if isinstance(value := config.get(key), str) and _is_local(value)]
    return _json({key: value for key, value in config.items() if key not in local}) if local else None


def _is_local(value: str) -> bool:
    return bool(value.startswith(("/", "~", ".", "file:")) or _OTHER.match(value) or Path(value).is_dir())


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_short_names(file: Path) -> str:
    """Return a recipe, or several, with short names for local folders; results that other merges use keep theirs."""
    documents = read_yaml_documents(file, "a merge recipe (YAML)")
    merges = [merge for document in documents for merge in (document if isinstance(document, list) else [document])]
    results = [merge.get("name") for merge in merges if isinstance(merge, Mapping)]
    names = {name: name for name in results if isinstance(name, str)}
    short = short_names(folder for folder in folders_in(documents) if folder not in names)
    names |= {folder: pinned(folder) or name for folder, name in short.items()}
    return yaml.safe_dump_all(rename_folders(documents, names.__getitem__), sort_keys=False, allow_unicode=True)


def rename_folders(data: Any, rename: Callable[[str], str], keys: Collection[str] = FOLDERS, key: str = "") -> Any:
    """Return the same data of a recipe, or of a part of one under `key`, with the texts under `keys` renamed."""
    if isinstance(data, Mapping):
        return {own: rename_folders(inner, rename, keys, str(own)) for own, inner in data.items()}
    if isinstance(data, list):
        return [rename_folders(inner, rename, keys, key) for inner in data]
    return rename(data) if isinstance(data, str) and key in keys else data


def folders_in(data: Any, keys: Collection[str] = FOLDERS) -> list[str]:
    """List the texts under `keys`, each once."""
    folders: dict[str, str] = {}
    rename_folders(data, lambda text: folders.setdefault(text, text), keys)
    return list(folders)


def _check_card(file: Path, text: Path | str) -> None:
    """Raise BadInput if a card names a path of this machine."""
    content = text if isinstance(text, str) else text.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(content.splitlines(), start=1):
        if path := local_path(line):
            raise BadInput(
                f"{file}: line {number} names a path of this machine, got {path}. "
                "Write a model of the Hub or a plain name there, then push again."
            )


def local_path(line: str) -> str | None:
    """Return the first local path in a line: below a usual root or one that exists here, of a home, or of Windows.

    Addresses of the web, fractions and links within a site are none.
    """
    for match in _PATH.finditer(line):
        if match[1] in ROOTS or Path("/", match[1]).is_dir():
            return match[0]
    other = _OTHER.search(line)
    if other is None:
        relative = re.match(r"\s*(?:-\s+|base_model:\s*)[\"']?(\.\.?/\S+?)[\"']?\s*$", line)
        return relative[1] if relative else None
    return other[0]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return a name for each path: the id of a Hub model, or as many last parts of a local path as distinguish all."""
    models = {path: hub.parse(path, "path") for path in paths}
    names = {path: model.repo for path, model in models.items() if model is not None}
    local = [path for path, model in models.items() if model is None]
    for parts in itertools.count(1):
        tails = ["/".join(Path(path).absolute().parts[1:][-parts:]) for path in local]
        if len(set(tails)) == len({Path(path).absolute() for path in local}):
            break
    shortened = dict(zip(local, tails, strict=True))
    return {path: names.get(path) or shortened[path] for path in models}


def pinned(path: str) -> str | None:
    """Return a model of the Hub at the commit that was read; None for a local folder."""
    model = hub.parse(path, "path")
    return None if model is None else f"{hub.PREFIX}{model.repo}@{model.cached_commit or model.revision}"
