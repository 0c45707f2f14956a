"""Bad input: one line on stderr that names the key and what would be right, exit code 2, and nothing computed or
written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import cli, inputs, sweep
from pipeline.run import cells
from pipeline.stages import data
from tests.messages import assert_one_line, assert_wording

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that are right, and files that are each wrong in one way."""
    (tmp_path / "text.txt").write_text("Some text.\n\nMore text.\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "word.docx").write_text("not a text file")
    (tmp_path / "no_yaml").mkdir()
    for name in ("no_config", "no_tokenizer", "no_weights"):
        (tmp_path / name).mkdir()
        for file in {"config.json", "tokenizer.json", "model.safetensors"} - {
            {"no_config": "config.json", "no_tokenizer": "tokenizer.json", "no_weights": "model.safetensors"}[name]
        }:
            (tmp_path / name / file).write_text("{}")
    return tmp_path


CASES = {
    "unknown key": (["ct.tokns=32k"], r"ct\.tokns: "),
    "unknown added key": (["+ct.tokns=32k"], r"ct\.tokns: "),
    "unknown group": (["languages=nya"], r"languages: "),
    "unknown choice": (["language=xyz"], r"language=xyz: "),
    "unknown experiment": (["experiment=tny"], r"experiment=tny: "),
    "launcher without jobs": (
        ["experiment=tiny", "launcher=basic"],
        r"launcher: ",
    ),
    "wrong type": (["seed=abc"], r"seed=abc: "),
    "negative seed": (["seed=-1"], r"seed=-1: "),
    "not a budget": (["ct.tokens=32q"], r"ct\.tokens=32q: "),
    "zero budget": (["ct.tokens=0"], r"ct\.tokens=0: "),
    "an average of LoRA's factors": (
        ["ct.schedule=wsd", "ct.decay_shape=average", "train=lora"],
        r"ct\.decay_shape=average: ",
    ),
    "an average of shards": (
        ["ct.schedule=wsd", "ct.decay_shape=average", "compute=fsdp", "compute.processes=2"],
        r"ct\.decay_shape=average: ",
    ),
    "budget above the schedule": (["ct.tokens=2B"], r"ct\.tokens=2B: "),
    "batch that is no multiple": (
        ["ct.batch_tokens=1000"],
        r"ct\.batch_tokens=1000: ",
    ),
    "batch that processes cannot share": (
        ["compute=ddp", "compute.processes=3"],
        r"ct\.batch_tokens=1024: ",
    ),
    "several processes without a strategy": (
        ["compute.processes=2"],
        r"compute\.strategy=none: ",
    ),
    "sharding for one": (
        ["compute=fsdp", "compute.processes=1"],
        r"compute\.processes=1: ",
    ),
    "liger on a CPU": (["compute.liger=true"], r"compute\.liger=true: "),
    "LoRA of rank zero": (["train=lora", "train.lora.rank=0"], r"train\.lora\.rank=0: "),
    "block above the context": (
        ["ct.block_size=1024"],
        r"ct\.block_size=1024: ",
    ),
    "share of one": (["ct.english_fraction=1"], r"ct\.english_fraction=1: "),
    "learning rate of zero": (["sft.learning_rate=0"], r"sft\.learning_rate=0: "),
    "density above one": (
        ["merge.methods.ties_sv_1.grid.density=[0.5,1.5]"],
        r"merge\.methods\.ties_sv_1\..*density: ",
    ),
    "density of zero": (
        ["merge.methods.ties_sv_1.grid.density=[0,1]"],
        r"merge\.methods\.ties_sv_1\..*density: ",
    ),
    "negative slack": (["merge.methods.ties_sv_1.recipe.slack=-1"], r"merge\.methods\.ties_sv_1\..*slack: "),
    "unknown method": (
        ["merge.methods.ties_sv_1.recipe.method=tise"],
        r"merge\.methods\.ties_sv_1\..*method: ",
    ),
    "unequal tries": (
        ["merge.methods.task_arithmetic.grid.lambda=[1]"],
        r"merge\.methods: ",
    ),
    "reserved name": (
        ["+merge.methods.sft={recipe: {method: ties}, grid: {lambda: [1, 2]}}"],
        r"merge\.methods\.sft: ",
    ),
    "no grid values": (
        ["merge.methods.task_arithmetic.grid.lambda=[]"],
        r"merge\.methods\.task_arithmetic\.grid\.lambda=\[\]: ",
    ),
    "English": (["language.code=en"], r"language\.code=en: "),
    "language that the corpus lacks": (["language.code=tam"], r"language\.code=tam: "),
    "no corpus path": (["language=mine"], r"corpus\.path: "),
    "missing corpus": (["language=mine", "corpus.path={tmp}/no/*.txt"], r"corpus\.path: "),
    "empty corpus": (["language=mine", "corpus.path={tmp}/empty.txt"], r"corpus\.path: "),
    "corpus that is not UTF-8": (
        ["language=mine", "corpus.path={tmp}/latin.txt"],
        r"corpus\.path: ",
    ),
    "corpus of another format": (
        ["language=mine", "corpus.path={tmp}/word.docx"],
        r"corpus\.path: ",
    ),
    "corpus that is a folder": (
        ["language=mine", "corpus.path={tmp}/no_yaml/"],
        r"corpus\.path=.*no_yaml/: ",
    ),
    "instructions that are a folder": (
        ["sft.path={tmp}/no_yaml"],
        r"sft\.path=.*no_yaml: ",
    ),
    "CUDA where there is none": (
        ["compute.device=cuda"],
        r"compute\.device=cuda: ",
    ),
    "missing English": (
        ["language=mine", "corpus.path={tmp}/text.txt", "corpus.english_path={tmp}/no.txt"],
        r"corpus\.english_path: ",
    ),
    "missing instructions": (["sft.path={tmp}/no.jsonl"], r"sft\.path: "),
    "instructions that are not JSONL": (["sft.path={tmp}/text.txt"], r"sft\.path: "),
    "missing model": (["model.path={tmp}/no"], r"model\.path=.*no: "),
    "model without config": (["model.path={tmp}/no_config"], r"model\.path=.*no_config: "),
    "model without tokenizer": (["model.path={tmp}/no_tokenizer"], r"model\.path=.*no_tokenizer: "),
    "model without weights": (["model.path={tmp}/no_weights"], r"model\.path=.*no_weights: "),
    "model from nowhere": (["model=folder"], r"model\.path=null: "),
    "missing tasks": (["eval.include_path={tmp}/no"], r"eval\.include_path=.*no: "),
    "tasks without YAML": (["eval.include_path={tmp}/no_yaml"], r"eval\.include_path=.*no_yaml: "),
    "descending budgets": (
        ["-m", "ct.tokens=4096,2048"],
        r"ct\.tokens=4096,2048: ",
    ),
    "a budget twice": (
        ["-m", "ct.tokens=2k,2000"],
        r"language\.code=nya ct\.tokens=2k seed=0: ",
    ),
    "one bad cell of a sweep": (["-m", "ct.tokens=2048,4096,1M"], r"ct\.tokens=1M: "),
    "a sweep without -m": (
        ["ct.tokens=2048,4096"],
        r"ct\.tokens=2048,4096: ",
    ),
    "not an override": (
        ["reproduce"],
        r"reproduce: ",
    ),
    "an override that cannot be read": (["ct.tokens=[1"], r"."),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def computes(*_: object) -> None:
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr(cells, "run_executor", computes)
    monkeypatch.setattr(cells, "compute_cells", computes)
    arguments, key = CASES[case]
    given = [argument.format(tmp=folder) if "{tmp}" in argument else argument for argument in arguments]
    experiment = [] if any(argument.startswith("experiment=") for argument in given) else ["experiment=test"]
    code = cli.pipeline_main([*experiment, f"store={folder}/store", f"outputs={folder}/outputs", *given])
    said = capsys.readouterr().err
    assert code == 2
    assert len(said.splitlines()) == 1
    assert re.match(key, said), said
    assert_wording(f"bad input: {case}", said, TMP=folder)
    assert not (folder / "outputs").exists()


BROKEN = {
    "indented": ("ct:\n  tokens: 1\n seed: [1,\n", r"line 3: not YAML: "),
    "tab": ("\tct: 1\n", r"line 1: not YAML: found character '\\t' that cannot start any token"),
    "unclosed": ("seed: [1\n", r"line 2: not YAML: "),
    "a key twice": ("seed: 1\nseed: 2\n", r"line 2: not YAML: found duplicate key seed"),
}


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("case", BROKEN)
def test_an_experiment_that_is_not_yaml(
    case: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BROKEN[case]
    shutil.copytree(sweep.CONF, tmp_path / "conf")
    broken = tmp_path / "conf" / "experiment" / "mine.yaml"
    broken.write_text(text)
    monkeypatch.setattr(sweep, "CONF", tmp_path / "conf")
    assert (
        cli.pipeline_main([verb, "-m", "experiment=mine", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"])
        == 2
    )
    said = capsys.readouterr().err
    assert re.fullmatch(f"{re.escape(str(broken))}: {message}.*. Correct it there.\n", said), said
    assert not (tmp_path / "outputs").exists()


def test_no_disk_space(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1, 1))
    assert cli.pipeline_main(["experiment=test", f"store={folder}/store", f"outputs={folder}/outputs"]) == 2
    assert "0.0 GB free, but this run may need" in capsys.readouterr().err


def test_a_budget_above_the_corpus_names_its_size(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(json.dumps({"tokens": 123_456}))
    data.check_budget(tmp_path, 123_456)
    with pytest.raises(BadInput, match=r"^ct\.tokens=1M: .* 123,456 "):
        data.check_budget(tmp_path, 10**6)


def test_nothing_to_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.pipeline_main(["report", "experiment=test", f"store={folder}/store"]) == 2
    assert_one_line(capsys.readouterr().err, f"store={folder}/store: ")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_command_itself() -> None:
    done = command("-m", "pipeline", "experiment=test", "ct.tokens=2B")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_help_and_plan_import_no_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from pipeline.cli import pipeline_main as main
assert main(["--help"]) == 0
assert "hydra" not in sys.modules
assert main(["plan", "-m", "experiment=test", "store={tmp_path}/store"]) == 0
heavy = {{"torch", "transformers", "lm_eval", "wandb", "vl_convert", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
    assert "2 cells, 28 stages: 0 done, 28 to run" in done.stdout


def test_a_plan_for_gpus_needs_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.pipeline_main(["plan", "experiment=test", "compute.device=cuda", f"store={folder}/store"]) == 0
    assert "to run" in capsys.readouterr().out


def test_a_folder_of_tasks_may_be_named_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "[old]").mkdir()
    (tmp_path / "[old]" / "mine.yaml").write_text("task: mine\n")
    assert inputs.task_files(tmp_path / "[old]") == [tmp_path / "[old]" / "mine.yaml"]
