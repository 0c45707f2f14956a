"""Names before 0.2: settings and files with them are read, each with a line that has the new name; keys stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import BadInput
from common.project import CONF
from pipeline import old_names, sweep
from pipeline.report import sources as report_sources
from pipeline.report.formatting import label
from pipeline.report.sources import Sources
from pipeline.run.cluster import site
from pipeline.stages.cell import merged, plan_cell
from pipeline.stages.stage import Stage
from tests.pipeline.report.synthetic import GOOD, INFO, LOST, Run
from tests.pipeline.test_keys import INPUTS

MINE = (
    "+merge.methods.mine={{of: [ct, {0}], grid: {{}},"
    " recipe: {{method: ties_sv, slack: 1, protect: [{0}], models.{0}.weight: 2.0}}}}"
)
OLD = (
    "merge=stated",
    "eval.unmerged=[ct,ceiling]",
    "arm=[ct_then_sft_with_ct,base_with_sft]",
    MINE.format("ceiling"),
)
NEW = (
    "merge=fixed",
    "eval.baselines=[ct,target_sft]",
    "arm=[average_of_ct_then_sft_and_ct,average_of_base_and_sft]",
    MINE.format("target_sft"),
)


@pytest.fixture(autouse=True)
def _say_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old_names._say.cache_clear()
    monkeypatch.setattr("pipeline.report._draw", lambda found, folder: None)
    monkeypatch.setattr("pipeline.report.figures.javascript", lambda: "")


def stages(*overrides: str) -> dict[str, Stage]:
    """Of an experiment's plan, by kind and slug."""
    cells = [plan_cell(config, INPUTS) for config in sweep.expand(overrides, multirun=True).configs]
    return {f"{stage.kind} {stage.slug}": stage for stage in merged(cells)}


def test_keys_and_folders_are_those_of_the_old_names() -> None:
    """Compared before and after the change: experiment=evidence, gates, tiny and this one had the same digests."""
    old, new = stages("experiment=test", *OLD), stages("experiment=test", *NEW)
    assert {name: stage.key for name, stage in old.items()} == {name: stage.key for name, stage in new.items()}
    assert {"eval nya-ceiling-4096-s0", "eval nya-base_with_sft-s0", "merge nya-mine-4096-s0"} < set(new)
    mine = new["merge nya-mine-4096-s0"]
    assert set(mine.parents) == {"model", "ct", "ceiling"}
    recipe = mine.settings.stated
    assert recipe["protect"] == ["ceiling"] and recipe["models.ceiling.weight"] == 2.0


def test_old_names_on_the_command_line_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("merge.methods.ties_stated.recipe.lambda=2.0", "~merge.methods.ties_sv_1_stated")
    for _ in range(2):
        sweep.expand(["experiment=tiny", "merge=tiny", *given], multirun=True)
        sweep.expand(["experiment=test", *OLD], multirun=True)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == 8
    assert said[0] == (
        "merge.methods.ties_stated: the name is now merge.methods.ties_fixed. The old one is accepted in this release"
        " only."
    )
    assert any(line.startswith("eval.baselines=ceiling: the name is now eval.baselines=target_sft.") for line in said)


def test_new_names_are_read_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    configs = sweep.expand(["experiment=evidence"], multirun=True).configs
    sweep.expand(["experiment=test", *NEW], multirun=True)
    assert capsys.readouterr().err == ""
    assert "target_sft" in configs[0].eval.baselines and "average_of_base_and_sft" in configs[0].merge.methods


def test_own_configuration_files_may_have_the_old_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults: [test, {override /merge: stated}, {override /arm: [base_with_sft, ct_then_sft_with_ct]}]\n"
        "name: own\n"
        "eval: {unmerged: [ct, ceiling]}\n"
        "merge: {methods: {ties_stated: {recipe: {method: ties}, grid: {}}}}\n"
    )
    found = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=own"]
    config = sweep.expand(found, multirun=True).configs[0]
    assert config.eval.baselines == ["ct", "target_sft"]
    assert {"average_of_base_and_sft", "average_of_ct_then_sft_and_ct", "ties_fixed"} < set(config.merge.methods)
    said = capsys.readouterr().err
    assert said.count("\n") == 6 and "merge=stated: the name is now merge=fixed." in said


def test_old_keys_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, in a configuration file, where the old one wins over the shipped default, and in a site."""
    given = ["experiment=test", "language.most_tokens=7k", "+compute.first_guess.ct=3"]
    config = sweep.expand(given, multirun=True).configs[0]
    assert config.language.max_tokens == 7000 and config.compute.stage_seconds == {"ct": 3}
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [{override /corpus: bible}]\n"
        "language: {code: nya, short: null, name: N'Ko ߒߞߏ, most_tokens: 3k, tasks: []}\n"
    )
    found = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=test", "language=own"]
    config = sweep.expand([*found, "ct.tokens=2048"], multirun=True).configs[0]
    assert config.language.max_tokens == 3000
    (tmp_path / "site.yaml").write_text(
        "data_here: true\nevaluations_a_job: 3\nat_once: 5\n"
        + "".join(f"{job}: {{gpus: 0, cpus: 1, memory_gb: 1, hours: 1}}\n" for job in ("train", "evaluate", "data"))
    )
    read = site.read(str(tmp_path / "site.yaml"))
    assert (read.run_data_locally, read.evals_per_job, read.max_parallel) == (True, 3, 5)
    said = capsys.readouterr().err
    assert said.count("\n") == 6 and said.count("accepted in this release only.") == 6


VALUES = {  # by old key, one that is not the default of experiment=test, as YAML
    "language.short": "zz",
    "eval.unmerged": "[sft, ct]",
    "eval.untuned": "true",
    "eval.excerpt": "70",
    "eval.leaks": "true",
    "ct.english_share": "0.3",
    "sft.replay_share": "0.1",
    "sft.arm_replay_share": "0.4",
    "model.recipe.aligned_share": "0.1",
    "model.recipe.repeated_share": "0.3",
    "merge.then_sft": "ties_sv_1",
}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return `{"a.b": value}` as a file has it: `{"a": {"b": value}}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return found


def test_old_keys_have_the_meaning_of_the_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, in a file, over which the command line wins, and as axes of a sweep."""
    assert VALUES.keys() == old_names.KEYS.keys() - {"language.most_tokens", "compute.first_guess"}
    one = ("experiment=test", "ct.tokens=2048", *(f"{old_names.KEYS[old]}={value}" for old, value in VALUES.items()))
    wanted, (usual,) = (sweep.expand(words, multirun=True).configs for words in (one, one[:2]))
    assert capsys.readouterr().err == ""
    lines = sorted(
        f"{old}: the name is now {old_names.KEYS[old]}. The old one is accepted in this release only." for old in VALUES
    )

    given = [f"{old}={value}" for old, value in VALUES.items()]
    assert sweep.expand([*one[:2], *given], multirun=True).configs == wanted
    assert sorted(capsys.readouterr().err.splitlines()) == lines

    old_names._say.cache_clear()
    own = {"defaults": ["test"], **nested({old: yaml.safe_load(value) for old, value in VALUES.items()})}
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "own.yaml"
    file.write_text("# @package _global_\n" + yaml.safe_dump(own, sort_keys=False))
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=own", "ct.tokens=2048"]
    assert sweep.expand(words, multirun=True).configs == wanted
    assert sorted(capsys.readouterr().err.splitlines()) == lines
    dumped = usual.model_dump(mode="json")
    for name, new in old_names.KEYS.items():
        if name in VALUES:
            value: Any = dumped
            for section in new.split("."):
                value = value[section]
            words.append(f"{name}={json.dumps(value)}")
    assert sweep.expand(words, multirun=True).configs == (usual,)

    old_names._say.cache_clear()
    capsys.readouterr()
    params = {"ct.tokens": 2048, **VALUES}
    file.write_text(
        "# @package _global_\n"
        + yaml.safe_dump({"defaults": ["test"], "hydra": {"sweeper": {"params": params}}}, sort_keys=False)
    )
    assert sweep.expand(words[:2], multirun=True).configs == wanted
    assert sorted(capsys.readouterr().err.splitlines()) == lines

    file.write_text("# @package _global_\ndefaults: [test]\neval: {limit: '${eval.excerpt}'}\n")
    with pytest.raises(
        BadInput, match=r"^eval\.excerpt: the name is now eval\.max_chars\. Write \$\{eval\.max_chars\}\.$"
    ):
        sweep.expand(words[:2], multirun=True)


def test_the_later_file_wins_whichever_names_it_has(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()

    def chars(*files: str) -> int | None:
        for number, text in enumerate(files):
            below = number - 1 if number else "test"
            path = tmp_path / "experiment" / f"{number}.yaml"
            path.write_text(f"# @package _global_\ndefaults: ['{below}']\neval: {{{text}}}\n".replace("'test'", "test"))
        found = f"hydra.searchpath=['file://{tmp_path}']"
        words = [found, f"experiment='{len(files) - 1}'", "ct.tokens=2048"]
        return sweep.expand(words, multirun=False).configs[0].eval.max_chars

    assert chars("excerpt: 70", "max_chars: 80") == 80
    assert chars("max_chars: 80", "excerpt: 70") == 70
    assert chars("excerpt: 70, max_chars: 80") == chars("max_chars: 80, excerpt: 70") == 80


def test_files_of_ours_have_the_new_keys() -> None:
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = content if path.parent.name == "experiment" else {path.parent.name: content}
        for old in old_names.KEYS:
            *sections, key = old.split(".")
            inner: Any = keys
            for section in sections:
                inner = (inner or {}).get(section)
            assert key not in (inner or {}), f"{path}: {old}"


def old(rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return text.replace("answer_bits_per_byte", "gold_bits_per_byte").replace('"answer_b', '"gold_b')


def test_reports_and_scores_with_the_old_names_are_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"ties": GOOD["ties"], "ties_fixed": GOOD["ties"]}, {"ties": LOST["ties"]})
    kept = Sources(info=replace(INFO, title="one"), evaluations=run.evaluations, audits=run.audits, choices=run.choices)
    new = kept.render(tmp_path / "one")
    table = new.results_csv.read_text()
    assert ",answer_bits_per_byte,ties_fixed," in table and ",average_of_base_and_sft," in table
    for path in (tmp_path / "run").rglob("*.jsonl"):
        path.write_text(old([json.loads(line) for line in path.read_text().splitlines()]))
    sources = tmp_path / "one" / report_sources.FILE
    before = sources.read_text()
    for was, name in old_names.METHODS.items():
        before = before.replace(f'"{name}"', f'"{was}"')
    assert '"ties_stated"' in before and '"base_with_sft"' in before
    sources.write_text(before)
    again = report_sources.render_folders([tmp_path / "one"], tmp_path / "again")
    assert again.results_csv.read_text() == table
    assert again.claims.read_bytes() == new.claims.read_bytes()
    assert label("ceiling") == label("target_sft") and label("a/ties_stated") == label("a/ties_fixed")
