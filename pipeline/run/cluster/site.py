"""The site file: resources of jobs on this cluster.

A short YAML, of which conf/site/slurm.yaml is the commented example.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from common.errors import BadInput
from common.settings import Settings
from common.validation import read_plain_yaml
from pipeline import old_names
from pipeline.config import Config, error_line

SITES = Path(__file__).parents[3] / "conf" / "site"
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::([0-5]?\d))?(?::([0-5]?\d))?")  # Slurm's D-HH:MM:SS, or HH:MM


def hours(given: Any) -> Any:
    """Parse hours from a time with colons or days, such as 4:30 or 1-00:00:00; return other values unchanged."""
    if not isinstance(given, str) or not (":" in given or "-" in given[1:]):
        return given
    if not (time := TIME.fullmatch(given.strip())):
        raise ValueError("must be hours as a number such as 4.5, or as HH:MM, HH:MM:SS or D-HH:MM:SS.")
    days, whole, minutes, seconds = (int(part or 0) for part in time.groups())
    return 24 * days + whole + minutes / 60 + seconds / 3600


class Place(Settings):
    """Where jobs run. None: the value at the top of the site file, or else the cluster's default."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # an account of digits

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] | None = None
    python: str | None = None
    extra: dict[str, Any] | None = None


class Resources(Place):
    """The resources of one class of jobs; all but the time are per node."""

    gpus: NonNegative
    cpus: Positive
    memory_gb: Annotated[float, Field(gt=0)]
    hours: Annotated[float, BeforeValidator(hours), Field(ge=1 / 60)]


class Site(Place):
    """A cluster. Missing values are those of conf/site/slurm.yaml."""

    train: Resources
    evaluate: Resources
    data: Resources
    run_data_locally: bool
    max_parallel: Positive
    evals_per_job: Positive
    warning_seconds: Positive
    restarts: NonNegative
    poll_seconds: Annotated[float, Field(gt=0)]
    settle_seconds: Annotated[float, Field(ge=0)]

    def resources(self, work: str) -> Resources:
        """Return the resources of a class of jobs: its own, else the site's."""
        section: Resources = getattr(self, work)
        common = {name: getattr(self, name) for name in Place.model_fields if getattr(section, name) is None}
        return section.model_copy(update=common)


def read(given: str) -> Site:
    """Return a site by its path, or by its name in conf/site/. Raises BadInput that names the file and the key."""
    path = Path(given) if given.endswith((".yaml", ".yml")) else SITES / f"{given}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SITES.glob("*.yaml")))
        raise BadInput(f"site={given}: no such file. Set the path of a site's YAML, or one of {known}.")
    try:
        content = read_plain_yaml(path, "the YAML of a site")
    except BadInput as error:
        raise BadInput(f"site={error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"site={path}: expected a mapping, as in conf/site/slurm.yaml, got {type(content).__name__}.")
    example = read_plain_yaml(SITES / "slurm.yaml")
    classes = ("train", "evaluate", "data")
    whole = {**{key: value for key, value in example.items() if key not in classes}, **old_names.site(content)}
    try:
        return Site.model_validate(whole)
    except ValidationError as error:
        raise BadInput(f"site={path}: {error_line(error, whole)}") from None


def check(site: Site, config: Config) -> None:
    """Reject what cannot run: no Slurm on this host, or fewer GPUs than a training has processes."""
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise BadInput(
            "launcher=slurm: sbatch and squeue are not on this host. "
            "Run this on a host that submits jobs, or set launcher=joblib."
        )
    processes = config.compute.processes
    if config.compute.device == "cuda" and site.train.gpus < processes:
        raise BadInput(
            f"site: train.gpus={site.train.gpus}: must be compute.processes={processes}, as each process of a node "
            f"needs a GPU. Set train.gpus={processes}."
        )
    if config.compute.device == "cuda" and site.evaluate.gpus < 1:
        raise BadInput("site: evaluate.gpus=0: compute.device=cuda scores on a GPU. Set evaluate.gpus=1.")
    if site.evaluate.gpus and site.evals_per_job > site.evaluate.gpus:
        raise BadInput(
            f"site: evals_per_job={site.evals_per_job}: must be at most evaluate.gpus={site.evaluate.gpus}, "
            "as each evaluation needs a GPU."
        )
