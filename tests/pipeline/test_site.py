"""The site file: what jobs ask for on a cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.errors import BadInput
from common.project import ROOT
from pipeline import sweep
from pipeline.run.cluster import site as sites
from pipeline.run.cluster.schedule import Piece
from pipeline.run.cluster.slurm import parameters
from tests.pipeline.small import CLASS, SITE, site
from tests.pipeline.toy_stage import toy_stage


def test_a_class_of_jobs_wins_over_the_top_of_the_file(tmp_path: Path) -> None:
    gpu = site(tmp_path, "partition: gpu\naccount: project\n")
    assert gpu.resources("data").partition == "gpu"
    (tmp_path / "site.yaml").write_text(SITE.replace("data: {", "data: {partition: cpu, ") + "partition: gpu\n")
    assert sites.read(str(tmp_path / "site.yaml")).resources("data").partition == "cpu"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("partitions: gpu\n", "partitions: unknown key. Did you mean partition?"),
        ("poll_seconds: soon\n", "poll_seconds=soon"),
        ("warning_seconds: 0\n", "warning_seconds=0"),
        ("[", "not YAML"),
        ("account: a\naccount: b\n", "the key account is given twice"),
    ],
)
def test_a_wrong_site_is_refused_in_one_line(tmp_path: Path, more: str, said: str) -> None:
    (tmp_path / "site.yaml").write_text(SITE + more)
    with pytest.raises(BadInput, match="site.yaml") as refused:
        sites.read(str(tmp_path / "site.yaml"))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "hours"),
    [("24:00:00", 24), ("4:30", 4.5), ("1-12", 36), ("2-00:30:00", 48.5), ('"0:90"', None), ("4.5", 4.5), ("08", 8),
     ("4h", None), ("1:2:3:4", None), ("on", None)],
)  # fmt: skip
def test_times_are_hours_and_no_numbers_of_base_60(tmp_path: Path, written: str, hours: float | None) -> None:
    train = f"train: {CLASS}"
    (tmp_path / "site.yaml").write_text(SITE.replace(train, train.replace("hours: 1", f"hours: {written}")))
    if hours is None:
        with pytest.raises(BadInput, match=r"site.yaml: train\.hours="):
            sites.read(str(tmp_path / "site.yaml"))
    else:
        assert sites.read(str(tmp_path / "site.yaml")).train.hours == hours


def test_words_and_digits_are_read_as_they_are_written(tmp_path: Path) -> None:
    """YAML 1.1 takes no for false, 0123 for 83 and 2026-01-01 for a date."""
    read = site(tmp_path, "partition: no\naccount: 0123\nqos: on\nconstraint: 2026-01-01\nwarning_seconds: 0100\n")
    assert (read.partition, read.account, read.qos, read.constraint) == ("no", "0123", "on", "2026-01-01")
    assert read.warning_seconds == 100
    assert site(tmp_path, "account: 12345\ndata_here: true\n").account == "12345"


def test_the_shipped_site_is_read_by_its_name() -> None:
    assert sites.read("slurm").train.hours > 0


@pytest.mark.parametrize("override", ["site=slurm", "launcher=joblib"])
def test_launcher_and_site_are_not_settings_of_the_experiment(override: str) -> None:
    if override.startswith("site"):
        with pytest.raises(BadInput, match="^site=slurm: "):
            sweep.expand(["experiment=test", override], multirun=True)
    else:
        assert sweep.expand(["experiment=test", override], multirun=True).launcher == "joblib"
    assert sweep.expand(["experiment=test", "launcher=slurm", "site=x.yaml"], multirun=True).site == "x.yaml"


def test_jobs_import_the_code_that_submitted_them(tmp_path: Path) -> None:
    """Of an installed wheel the packages are in no place that Python searches by itself."""
    task = Piece("data", (toy_stage("corpus", "nya", {}),), frozenset())
    setup = parameters(site(tmp_path, "setup: [module load python]\n"), task, "name", [])["setup"]
    assert setup[0] == "module load python"
    for before, after in (("", str(ROOT)), ("/a b", f"{ROOT}:/a b")):
        words = ["sh", "-c", f'{setup[-1]}; printf %s "$PYTHONPATH"']
        done = subprocess.run(words, env={"PYTHONPATH": before}, capture_output=True, text=True, check=True)
        assert done.stdout == after
