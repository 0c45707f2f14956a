"""Command line -> the configs of all cells, composed by Hydra and validated, before anything is computed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from common.errors import BadInput, suggestion
from common.project import CONF
from common.units import format_tokens
from pipeline import old_names, variants
from pipeline.config import Config, validate
from pipeline.config.sources import corpora_with
from pipeline.resolve import resolved
from pipeline.stages import STAGE_TYPES

SEARCH_PATH = "hydra.searchpath"  # further folders of configuration files
# Launchers: the cells one by one, without another process; jobs of our own; children of our own, on all GPUs.
IN_THIS_PROCESS, SLURM, GPUS = "basic", "slurm", "gpus"
OURS = {"local": IN_THIS_PROCESS, SLURM: SLURM, GPUS: GPUS}  # by the name that a user gives; the others are Hydra's


@dataclass(frozen=True)
class Sweep:
    """The cells of a command line, in the order in which they run."""

    configs: tuple[Config, ...]
    overrides: tuple[tuple[str, ...], ...]  # of each cell: `key=value` as Hydra composes it
    common: tuple[str, ...]  # what was given and is the same for all cells, settings of Hydra's launcher too
    launcher: str
    processes: int  # that run cells at a time
    site: str | None = None  # of a Slurm cluster: a name in conf/site/ or a path
    launcher_given: bool = False  # on the command line, and not by the experiment or by default


def expand(overrides: Sequence[str], multirun: bool) -> Sweep:
    """Return the cells of the experiment's `hydra.sweeper.params` and the command line, which wins; without `multirun`
    one.

    Raises BadInput, in the words of our schema where Hydra rejects.
    """
    launcher_given = any(override.startswith(("launcher=", "hydra/launcher=")) for override in overrides)
    overrides, ours, site = _launched(old_names.overrides(overrides))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            given = OverridesParser.create().parse_overrides(list(overrides))
            common = [override.input_line or "" for override in given if not override.is_sweep_override()]
            found_in = [_searched(override) for override in given if override.key_or_group == SEARCH_PATH]
            others = [line for line in common if not line.startswith(f"{SEARCH_PATH}=")]
            root = compose("config", [*found_in, *others], return_hydra_config=True)
            cells = _product(root, given) if multirun else [_single(given)]
            configs = _with_variants(cells, list(_composed(cells, found_in)), found_in)
        except BadInput:
            raise
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group that is not a name
            raise BadInput(_one_line(error)) from None
        launcher = str(root.hydra.runtime.choices["hydra/launcher"]) if multirun else IN_THIS_PROCESS
        at_once = int(root.hydra.launcher.get("n_jobs") or 1) if multirun else 1
    kept = [(tuple(cell), config) for cell, config in zip(cells, configs, strict=True) if not _out_of_reach(config)]
    reached = _with_cells_to_choose_on([resolved(config) for _, config in kept])
    _check_budgets(reached)
    if at_once < 1 or at_once > len(reached):  # joblib's -1: as many as there are cores
        at_once = len(reached)
    if ours is not None:
        launcher, at_once = ours, 1
    return Sweep(reached, tuple(cell for cell, _ in kept), tuple(common), launcher, at_once, site, launcher_given)


class UserFiles(FileConfigSource):
    """A folder of configuration files that may have old names of keys, as a source of Hydra."""

    @staticmethod
    def scheme() -> str:
        """Return how its addresses begin."""
        return "slackmerge"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the content of a file, with the names of today."""
        result = super().load_config(config_path)
        package = result.header.get("package") or config_path.rpartition("/")[0].replace("/", ".")
        content: Any = OmegaConf.to_container(result.config, resolve=False)
        if isinstance(content, dict):
            result.config = OmegaConf.create(old_names.file(content, "" if package == "_global_" else package))
        return result


def _searched(override: Override) -> str:
    """Return an override of the search path, in which folders are sources of our kind."""
    Plugins.instance().register(UserFiles)
    places = override.value()
    if not isinstance(places, list):
        return override.input_line or ""
    paths = [str(getattr(place, "text", place)).removeprefix("file://") for place in places]
    named = [path if "://" in path else f"{UserFiles.scheme()}://{path}" for path in paths]
    return f"{SEARCH_PATH}=[" + ",".join("'" + path.replace("'", "\\'") + "'" for path in named) + "]"


def _launched(overrides: Sequence[str]) -> tuple[list[str], str | None, str | None]:
    """Return the overrides for Hydra, with `launcher=` in its form; the launcher, if it is ours; the site of Slurm's
    jobs.

    Slurm's jobs are ours: Hydra's are whole cells, which would hold GPUs while they wait for one another.
    """
    rest = [override for override in overrides if not override.startswith(("launcher=", "site="))]
    named: dict[str, str] = {
        key: value for key, _, value in (override.partition("=") for override in overrides if override not in rest)
    }
    if named.get("launcher") == SLURM:
        return rest, SLURM, named.get("site", "slurm")
    if "site" in named:
        raise BadInput(f"site={named['site']}: only launcher=slurm uses a site. Set launcher=slurm, or leave it out.")
    if (launcher := named.get("launcher")) in OURS:
        return rest, OURS[launcher], None
    return rest + [f"hydra/launcher={name}" for name in named.values()], None, None


def _product(root: DictConfig, given: list[Override]) -> list[list[str]]:
    """Return every combination of the axes' values, the last axis fastest; an axis keeps the place where it is named
    first.
    """
    params: Any = OmegaConf.to_container(root.hydra.sweeper.params) or {}
    parsed = OverridesParser.create().parse_overrides(
        old_names.overrides([f"{key}={value}" for key, value in params.items()])
    )
    axes: dict[str, list[str]] = {}
    for override in (*parsed, *_not_hydra(given)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            raise BadInput(f"{override.input_line}: an axis must be a list of values, such as ct.tokens=32k,128k.")
        axes[key] = [f"{key}={value}" for value in values]
    return [list(cell) for cell in itertools.product(*axes.values())]


def _single(given: list[Override]) -> list[str]:
    for override in given:
        if override.is_sweep_override():
            raise BadInput(
                f"{override.input_line}: several values need a sweep. Pass -m (slackmerge run -m ...), "
                "or quote a value that contains a comma."
            )
    return [override.input_line or "" for override in _not_hydra(given)]


def _not_hydra(given: list[Override]) -> list[Override]:
    return [override for override in given if not override.get_key_element().startswith("hydra")]


def _composed(cells: Sequence[list[str]], found_in: Sequence[str]) -> Iterator[Config]:
    """Yield the config of each cell. Hydra composes once for all cells that differ in plain values alone: a composition
    takes a fifth of a second, and the values are set in it as Hydra itself would set them.
    """
    plain = _plain_axes(cells)
    shared: dict[tuple[str, ...], DictConfig] = {}
    for cell in cells:
        choices = tuple(line for line in cell if _key(line) not in plain)
        if choices not in shared:
            shared[choices] = compose("config", [*found_in, *cell])
            _reset_methods(shared[choices], cell, found_in)
        for key in plain:
            value = plain[key][next(line for line in reversed(cell) if _key(line) == key)]  # the last one wins
            OmegaConf.update(shared[choices], key, value, merge=True)
        composed: Any = OmegaConf.to_container(shared[choices], resolve=True)
        config = validate(composed, given={_key(line).lstrip("+~") for line in cell})
        check_kinds(config.compute.stage_seconds)
        yield config


def _reset_methods(composed: DictConfig, cell: Sequence[str], found_in: Sequence[str]) -> None:
    """Reset the methods of merges to those of their file if `merge=...` is among the overrides.

    An experiment refines the methods of its own choice, such as by a grid. Methods that another file adds with a recipe
    stay, as those of conf/arm, and so does what other overrides set.
    """
    choice = next((line for line in reversed(cell) if _key(line) == "merge"), None)
    given = [_key(line).lstrip("+~") + "." for line in cell]
    if choice is None or "merge.methods." in given:
        return
    chosen = compose("config", [*found_in, "~experiment", choice]).merge.methods
    methods = composed.merge.methods
    with open_dict(methods):
        for name in [name for name in methods if not any(key.startswith(f"merge.methods.{name}.") for key in given)]:
            if name in chosen:
                methods[name] = chosen[name]
            elif "recipe" not in (methods[name] or ()):
                del methods[name]


def _with_variants(cells: Sequence[list[str]], configs: Sequence[Config], found_in: Sequence[str]) -> list[Config]:
    """Return the configs of cells with those of their variants, which are composed as cells are."""
    found: list[dict[str, Config]] = [{} for _ in configs]
    for name, text in dict.fromkeys(item for config in configs for item in config.variants.items()):
        numbers = [number for number, config in enumerate(configs) if config.variants.get(name) == text]
        try:
            lines = [variants.relative(cells[number], text) for number in numbers]
            for override in OverridesParser.create().parse_overrides(variants.split(text)):
                if override.is_sweep_override():
                    raise BadInput(f"{override.input_line}: a variant has one value of each setting. Give one.")
            for number, variant in zip(numbers, _composed(lines, found_in), strict=True):
                variants.check(configs[number], variant)
                found[number][name] = variant
        except (BadInput, HydraException, OmegaConfBaseException, ValueError) as error:
            line = str(error) if isinstance(error, BadInput) else _one_line(error)
            raise BadInput(f"variants.{name}: {line}") from None
    return [config.with_variants(of_cell) for config, of_cell in zip(configs, found, strict=True)]


def check_kinds(stage_seconds: Iterable[str]) -> None:
    """Raise BadInput for a kind of stage that is not known."""
    for kind in stage_seconds:
        if kind not in STAGE_TYPES:
            raise BadInput(
                f"compute.stage_seconds.{kind}: unknown kind of stage. {suggestion(kind, list(STAGE_TYPES))}"
            )


def _plain_axes(cells: Sequence[list[str]]) -> dict[str, dict[str, Any]]:
    """Return the values, by override, of each axis that has several, all single, and chooses no group; and that no
    other override reaches into.
    """
    lines: dict[str, list[str]] = {}
    for line in dict.fromkeys(line for cell in cells for line in cell):
        lines.setdefault(_key(line), []).append(line)
    # choices of groups apply before values, whatever their order
    values = {key: given for key, given in lines.items() if not (CONF / key).is_dir()}
    plain = {}
    for key, given in values.items():
        apart = not any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in values)
        if len(given) > 1 and apart and re.fullmatch(r"\w+(\.\w+)*", key):
            overrides = OverridesParser.create().parse_overrides(given)
            parsed = {line: override.value() for line, override in zip(given, overrides, strict=True)}
            if not any(isinstance(value, (dict, list)) for value in parsed.values()):
                plain[key] = parsed
    return plain


def _key(line: str) -> str:
    """Return the key of an override `key=value`."""
    return line.partition("=")[0]


def _out_of_reach(config: Config) -> bool:
    """Return whether a cell is left out, as its language, or one of a variant, has not text enough for the budget that
    CT would be trained on.
    """
    trained = [each for each in (config, *config.variant_configs.values()) if each.ct.source is None]
    return any(config.ct.tokens > (each.language.max_tokens or config.ct.tokens) for each in trained)


def _with_cells_to_choose_on(configs: Sequence[Config]) -> tuple[Config, ...]:
    """Return the cells with the budgets and seeds of merge.choice as numbers: `all` are those of the sweep in their
    language.

    So is the `largest` budget of eval.frontier. Of stated budgets, those that the language has not text for are left
    out.
    """
    resolved = []
    for config in configs:
        choice = config.merge.choice
        limits = [each.language.max_tokens for each in (config, *config.variant_configs.values())]
        most = min((limit for limit in limits if limit is not None), default=None)
        of_report = [other for other in configs if other.report == config.report]
        budgets, seeds = choice.budgets, choice.seeds
        if budgets == "all":
            budgets = tuple(dict.fromkeys(other.ct.tokens for other in of_report))
        elif budgets != "own" and most is not None:
            budgets = tuple(tokens for tokens in budgets if tokens <= most)
        if not budgets:
            raise BadInput(
                f"merge.choice.budgets: all are above language.max_tokens of {config.language.code}. Set smaller ones."
            )
        if seeds in ("all", "first"):
            of_sweep = tuple(dict.fromkeys(other.seed for other in of_report))
            seeds = of_sweep if seeds == "all" else of_sweep[:1]
        named = choice.model_copy(update={"budgets": budgets, "seeds": seeds})
        merge, scored = config.merge.model_copy(update={"choice": named}), config.eval
        if scored.frontier == "largest":
            scored = scored.model_copy(update={"frontier": (max(other.ct.tokens for other in of_report),)})
        resolved.append(config.model_copy(update={"merge": merge, "eval": scored}))
    return tuple(resolved)


def _check_budgets(configs: Sequence[Config]) -> None:
    if not configs:
        raise BadInput("ct.tokens: every budget is above language.max_tokens, so no run is left. Set smaller budgets.")
    given = [config for config in configs if config.ct.source]
    if len({config.ct.tokens for config in given}) > 1:
        raise BadInput(
            "ct.source: a given checkpoint has one budget. "
            "Set ct.tokens to the number of tokens that it was trained on."
        )
    cells = [(*config.report, config.ct.tokens, config.seed) for config in configs]
    if len(set(cells)) < len(cells):
        _, code, tokens, seed = next(cell for cell in cells if cells.count(cell) > 1)
        raise BadInput(
            f"language.code={code} ct.tokens={format_tokens(tokens)} seed={seed}: the sweep has this run twice. "
            "List each value once, or set regime=... for runs that differ otherwise (conf/experiment/regimes.yaml)."
        )
    budgets = list(dict.fromkeys(config.ct.tokens for config in configs))
    if budgets != sorted(budgets):
        listed, right = (",".join(map(format_tokens, order)) for order in (budgets, sorted(budgets)))
        raise BadInput(
            f"ct.tokens={listed}: budgets must ascend, as each training resumes from the one before. "
            f"Set ct.tokens={right}."
        )


def _one_line(error: Exception) -> str:
    """Describe an error of Hydra as our schema would."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: no such choice. {suggestion(choice, error.options)}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: Hydra cannot read it as key=value. Quote a value with blanks, brackets or letters "
            "beyond ASCII, such as \"corpus.path='text/*.txt'\"."
        )
    text = str(error)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        key = unknown[1]
        added = re.search(r"full_key: (\S+)", str(error.__cause__))
        if added and added[1].startswith(f"{key}."):
            return f"{added[1]}: no such key. To add it to the others, set +{added[1]}=value."
        section, _, name = key.partition(".")
        if section == "corpus" and (others := corpora_with(name.partition(".")[0])):
            return f"{key}: the chosen corpus has no such key. Set corpus={' or '.join(others)} too."
        if key in _known_keys():
            return f"{key}: no such key. Add keys one by one, as +{key}.name=value."
        return f"{key}: unknown key. {suggestion(key, _siblings(key))}" if "." in key else _unknown_group(key)
    missing = re.search(r"Interpolation key '([^']+)' not found", text)
    if missing and (new := old_names.KEYS.get(missing[1])):
        return f"{missing[1]}: the name is now {new}. Write ${{{new}}}."
    if merging := re.match(r"Error merging override \+*(\S+?=(.).*)", text):
        form = "a list, such as [a,b]" if merging[2] == "{" else "a mapping, such as {a: 1}"
        return f"{merging[1]}: must be {form}."
    if foreign := re.search(r"^In '([^']+)'.*full_key: (hydra\.launcher\.\S+)", text, re.DOTALL):
        return (
            f"launcher: {foreign[1]} sets {foreign[2]}, which this launcher does not have. "
            "Leave launcher= out (hydra.launcher.n_jobs=1 computes one run after another)."
        )
    line = next(line.strip() for line in text.splitlines() if line.strip())
    return line if line.endswith(".") else f"{line}."


def _unknown_group(name: str) -> str:
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
    return f"{name}: unknown key or group. {suggestion(name, [*groups, 'name', 'seed', 'store', 'outputs'])}"


def _siblings(key: str) -> list[str]:
    """Return the keys of the section that a misspelt key names, or all keys if there is no such section."""
    known = _known_keys()
    return [other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]] or known


def _known_keys() -> list[str]:
    def flat(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        nested = (
            key for name, value in node.items() for key in flat(value, f"{prefix}.{name}" if prefix else str(name))
        )
        return [prefix, *nested]

    return [key for key in flat(OmegaConf.to_container(compose("config")), "") if "." in key]
