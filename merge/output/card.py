"""The model card of a merge, ready to publish, and the merge that a card describes.

A card names models of the Hub by id, and no local paths. It has the recipe, the settings in which the models differ and
checksums, so that a merge can be repeated from the card alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common import hub
from common.errors import BadInput, suggestion, user_errors
from common.files import sha256
from common.validation import parse_yaml
from merge.auditing import Audit
from merge.checkpoints.folder import quantizer_of
from merge.engine.plan import Plan
from merge.output.sharing import pinned, rename_folders, short_names
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.engine.plan import Plan

SHARES = ("share_trimmed", "share_in_conflict", "share_lost_in_conflict", "norm_lost")
LARGEST = 10_000_000  # bytes of a card
_RECIPE = re.compile(r"^## How to make it again$.*?^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CHECKSUM = re.compile(r"^- (read|written) `([^`\n]+)`: ([0-9a-f]{64})$", re.MULTILINE)
_SHARDS = re.compile(r"^    slackmerge merge .*--shard-size (\d{1,18})B$", re.MULTILINE)
# What changes no answer, or is settled elsewhere: savers' notes, dtypes, training, generation, vocabularies, the tie.
_OTHER = re.compile(
    r"_.*|name_or_path|transformers.*|unsloth.*|architectures|model_type|auto_map|(?:torch_)?dtype|.*use_cache"
    r"|tie_\w+|(?:quantization|compression)_config|\w*vocab_size|n_words|\w+_token_ids?|\w+_token_index"
    r"|attn_impl\w*|output_\w+|return_dict\w*|torchscript|\w*gradient_checkpointing\w*|id2label|label2id|num_labels"
    r"|finetuning_task|problem_type|task_specific_params|pretraining_tp|\w*dropout\w*|\w*_pdrop|\w*drop_path\w*"
    r"|\w*initializer\w*|\w*init_std|\w*_loss\w*|max_length|min_length|do_sample|temperature|top_[kp]|num_beams"
    r"|repetition_penalty|model_max_length|\w+_reentrant|rescale_prenorm_residual|seq_length|summary_\w+"
)
_STACKED = re.compile(r"num_hidden_layers|n_layers?|num_layers|.*layer_types|max_window_layers")  # set by slices
# What older savers leave out where it is this.
_DEFAULTS = {"rope_theta": 10000.0, "rope_scaling": None, "sliding_window": None, "partial_rotary_factor": 1.0}
LONGEST = 60  # characters of a value
_ABSENT = object()


def render(
    title: str,
    plan: Plan,
    recipe: Recipe,
    files: Sequence[Path],
    audit: Audit | None,
    checksums: bool = True,
    shard_bytes: int | None = None,
) -> str:
    """Render Markdown with a YAML head for model hubs: parents, method, settings, checksums, how to rebuild it.

    Local folders are named by the last parts of their paths, as many as distinguish them; merge.yml has the full paths.
    The Hub accepts only its own names as base_model. shard_bytes: size of the largest file, if it was set.
    """
    paths = [str(path) for parent in plan.parents for path in parent if path is not None]
    names = short_names(paths)
    known = [names[path] for path in paths if path.startswith(hub.PREFIX)]
    parents = {"base_model": list(dict.fromkeys(known))} if known else {}
    head = yaml.safe_dump({**parents, "tags": ["merge", "slackmerge"], "library_name": "transformers"}, sort_keys=False)
    lines = [f"---\n{head}---\n", f"# {title}\n", f"A merge by `{recipe.method}`."]
    if recipe.base is not None:
        lines.append(f"Base: `{names[str(recipe.base)]}`.")
    models = [f"{model.name} (`{names[str(model.path)]}`{_with(model.adapter, names)})" for model in recipe.models]
    lines.append(f"Models: {', '.join(models)}.\n")
    shortened = rename_folders(recipe.to_dict(), lambda path: pinned(path) or names[path])
    settings = yaml.safe_dump(shortened, sort_keys=False)
    lines.append(
        "## How to make it again\n\n    slackmerge merge --from-card README.md OUT_DIR"
        f"{'' if shard_bytes is None else f' --shard-size {shard_bytes}B'}\n\n"
        f"by this recipe, in which paths are shortened:\n\n```yaml\n{settings}```\n"
    )
    if settings_that_differ := differences(plan, names):
        lines.append("## Settings in which the models differ\n")
        lines += [f"- {line}" for line in settings_that_differ]
        lines.append("")
    if audit is not None and (rows := audit.report()["models"]):
        lines.append(
            "## What was discarded\n\n"
            "| model | trimmed | in conflict | lost in conflict | norm lost |\n|---|---|---|---|---|"
        )
        for name, row in rows.items():
            cells = ["–" if row[key] is None else f"{row[key]:.1%}" for key in SHARES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines + (_checksums(plan, names, files) if checksums else [])) + "\n"


def _with(adapter: Path | None, names: dict[str, str]) -> str:
    return f" with the LoRA `{names[str(adapter)]}`" if adapter is not None else ""


def _checksums(plan: Plan, names: dict[str, str], files: Sequence[Path]) -> list[str]:
    """Compute checksums of every file read, by its folder's short name, and of every file written."""
    read: dict[Path, str] = {}
    for (path, adapter), parent in plan.parents.items():
        for file in sorted(parent.files):
            folder = adapter if adapter is not None and file.name in hub.ADAPTERS else path
            read[file] = f"{names[str(folder)]}/{file.name}"
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, [*read, *files]))
    lines = ["## Checksums (sha256)\n"]
    lines += [f"- read `{name}`: {digest}" for name, digest in zip(read.values(), digests, strict=False)]
    written = zip(files, digests[len(read) :], strict=True)
    return lines + [f"- written `{file.name}`: {digest}" for file, digest in written]


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
    recipe = Recipe.from_dict(rename_folders(data, finder.find), where=str(path))
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
            name, equals, folder = text.partition("=")
            if not (name and equals and folder):
                raise BadInput(f"--model {text}: expected NAME=FOLDER, with the model's name on the card.")
            self.given[name] = folder

    def find(self, name: str) -> str:
        """Return the folder of a model, or a model of the Hub. Raises BadInput for a local one that is not found."""
        if not name or "\0" in name:
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


def differences(plan: Plan, names: Mapping[str, str]) -> list[str]:
    """Return one line per setting of the configs that differs and that the weights depend on, such as `rope_theta`.

    A line has the value in the result, which has the leader's config, and the other values with the parents' names.
    """
    key = plan.leader
    lead = dict(_flat(plan.parents[key].config))
    sliced = bool(plan.recipes[0].slices)
    values_of: dict[str, dict[str, list[str]]] = {}
    for parent, checkpoint in plan.parents.items():
        own = dict(_flat(checkpoint.config))
        for setting in dict.fromkeys((*lead, *own)):
            last = setting.rpartition(".")[2]
            if _OTHER.fullmatch(last) or (sliced and _STACKED.fullmatch(last)):
                continue
            mine, other = (values.get(setting, _DEFAULTS.get(last, _ABSENT)) for values in (lead, own))
            if mine is not _ABSENT and other is not _ABSENT and mine != other:
                holders = values_of.setdefault(setting, {}).setdefault(_shown(other), [])
                holders.append(names[str(parent[0])])
    lines = [
        f"{setting}: {_shown(lead.get(setting, _DEFAULTS.get(setting.rpartition('.')[2])))} in the result, as in "
        f"{names[str(key[0])]}; "
        + "; ".join(f"{value} in {', '.join(dict.fromkeys(holders))}" for value, holders in values.items())
        for setting, values in values_of.items()
    ]
    if plan.left_out:
        counted = f"{len(plan.left_out)} tensors ({plan.left_out[0]}, ...)" if plan.left_out[1:] else plan.left_out[0]
        lines.append(f"{counted}: left out, as not all models have it and transformers does not load it")
    left = [names[str(key[0])]] if quantizer_of(plan.parents[key].config) else []
    return lines + [f"quantization_config of {name}: left out, as its weights are not quantized" for name in left]


def places(plan: Plan) -> dict[str, str]:
    """Name the parents by their paths."""
    return {str(parent[0]): str(parent[0]) for parent in plan.parents}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten settings, including those of parts, and give rope settings of older and newer savers the same names."""
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield from _flat(value, f"{prefix}{key}.")
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            yield from ((f"{prefix}{own}", each) for own, each in _rope(value))
        elif not (key == "rope_scaling" and value is None):
            yield f"{prefix}{key}", value


def _rope(value: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    rest = {("rope_type" if key == "type" else key): each for key, each in value.items()}
    apart = [(key, rest.pop(key)) for key in ("rope_theta", "partial_rotary_factor") if key in rest]
    if rest.get("rope_type") == "default":
        del rest["rope_type"]
    return [*apart, ("rope_scaling", rest or None)]


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
