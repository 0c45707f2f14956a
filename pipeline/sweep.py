"""Command line -> the configs of all cells, composed by Hydra and validated, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import BadInput
from common.units import format_tokens
from pipeline.config import Config, suggestion, validate

CONF = Path(__file__).parents[1] / "conf"


@dataclass(frozen=True)
class Sweep:
    """The configs of the cells, in the order in which they run."""

    configs: tuple[Config, ...]
    overrides: tuple[str, ...]  # as given on the command line
    multirun: bool
    launcher: str
    jobs: int  # cells that run at a time
    site: str | None = None  # of a Slurm cluster: a name in conf/site/ or a path


def expand(overrides: Sequence[str], multirun: bool) -> Sweep:
    """The cells that Hydra would run: the experiment's `hydra.sweeper.params` and the command line, which wins. Raises BadInput."""
    overrides, site = _launched(overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            given = OverridesParser.create().parse_overrides(list(overrides))
            plain = [override.input_line or "" for override in given if not override.is_sweep_override()]
            root = compose("config", plain, return_hydra_config=True)
            jobs = _jobs(root, given) if multirun else [_single(given)]
            configs = tuple(_validated(job) for job in jobs)
        except (HydraException, OmegaConfBaseException) as error:
            raise BadInput(_one_line(error)) from None
        launcher = str(root.hydra.runtime.choices["hydra/launcher"])
        at_once = int(root.hydra.launcher.get("n_jobs") or 1) if multirun else 1
        together = (
            len(configs) if at_once < 1 else min(at_once, len(configs))
        )  # joblib's -1: as many as there are cores
    configs = tuple(config for config in configs if not out_of_reach(config))
    _check_budgets(configs)
    return (
        Sweep(configs, tuple(overrides), multirun, launcher, together)
        if site is None
        else Sweep(configs, tuple(overrides), multirun, "slurm", 1, site)
    )


def _launched(overrides: Sequence[str]) -> tuple[list[str], str | None]:
    """What is left for Hydra, with `launcher=` in its words, and the site where jobs go to Slurm. Slurm's jobs are ours: Hydra's are whole cells,
    which would hold GPUs while they wait for one another."""
    rest = [override for override in overrides if not override.startswith(("launcher=", "site="))]
    named: dict[str, str] = {
        key: value for key, _, value in (override.partition("=") for override in overrides if override not in rest)
    }
    if named.get("launcher") == "slurm":
        return rest, named.get("site", "slurm")
    if "site" in named:
        raise BadInput(f"site={named['site']}: only launcher=slurm reads a site; say launcher=slurm, or leave it out")
    return rest + [f"hydra/launcher={name}" for name in named.values()], None


def _jobs(root: DictConfig, given: list[Override]) -> list[list[str]]:
    axes: Any = OmegaConf.to_container(root.hydra.sweeper.params) or {}
    assert isinstance(axes, dict)
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in axes.items()])
    own = [override for override in given if not override.get_key_element().startswith("hydra")]
    return BasicSweeper.split_arguments([*parsed, *own], max_batch_size=None)[0]


def _single(given: list[Override]) -> list[str]:
    for override in given:
        if override.is_sweep_override():
            raise BadInput(
                f"{override.input_line}: several values make a sweep; say `python -m pipeline -m ...`, or quote a value that holds a comma"
            )
    return [override.input_line or "" for override in given if not override.get_key_element().startswith("hydra")]


def _validated(overrides: list[str]) -> Config:
    composed: Any = OmegaConf.to_container(compose("config", overrides), resolve=True)
    return validate(composed)


def out_of_reach(config: Config) -> bool:
    """Whether a cell of a sweep is left out, as its language has not text enough for the budget that CT would be trained on."""
    most = config.language.most_tokens if config.ct.source is None else None
    return most is not None and config.ct.tokens > most


def _check_budgets(configs: Sequence[Config]) -> None:
    if not configs:
        raise BadInput(
            "ct.tokens: every budget is above language.most_tokens, so no cell is left; take smaller budgets"
        )
    given = [config for config in configs if config.ct.source]
    if len({config.ct.tokens for config in given}) > 1:
        raise BadInput(
            "ct.source: a given checkpoint has one budget; say ct.tokens=... once, with the tokens that it was trained on"
        )
    cells = [(config.language.code, config.ct.tokens, config.seed) for config in configs]
    if len(set(cells)) < len(cells):
        code, tokens, seed = next(cell for cell in cells if cells.count(cell) > 1)
        raise BadInput(
            f"the sweep has the cell language.code={code} ct.tokens={format_tokens(tokens)} seed={seed} twice; give each value once"
        )
    budgets = list(dict.fromkeys(config.ct.tokens for config in configs))
    if budgets != sorted(budgets):
        listed, right = (",".join(map(format_tokens, order)) for order in (budgets, sorted(budgets)))
        raise BadInput(
            f"ct.tokens={listed}: budgets must ascend, as each continues from the one before; say ct.tokens={right}"
        )


def _one_line(error: Exception) -> str:
    """What Hydra refuses, in the words of our schema."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: no such choice; {group} has {', '.join(error.options)}"
    text = str(error)
    found = re.search(r"Could not override '([^']+)'", text)
    if found:
        known = _known_keys()
        return (
            f"{found[1]}: unknown key; {suggestion(found[1], known)}" if "." in found[1] else _unknown_group(found[1])
        )
    foreign = re.search(r"^In '([^']+)'.*full_key: (hydra\.launcher\.\S+)", text, re.DOTALL)
    if foreign:
        return f"launcher: {foreign[1]} sets {foreign[2]}, which this launcher does not have; keep the experiment's own (hydra.launcher.n_jobs=1: one by one)"
    return next(line.strip() for line in text.splitlines() if line.strip())


def _unknown_group(name: str) -> str:
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
    return f"{name}: unknown key or group; {suggestion(name, [*groups, 'name', 'seed', 'store', 'outputs'])}"


def _known_keys() -> list[str]:
    def flat(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [
            prefix,
            *(key for name, value in node.items() for key in flat(value, f"{prefix}.{name}" if prefix else str(name))),
        ]

    return [key for key in flat(OmegaConf.to_container(compose("config")), "") if "." in key]
