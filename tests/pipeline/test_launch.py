"""Trainings in child processes: told to stop, killed, refused, crashed; and what the record says of a launch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.errors import BadInput, Interrupted
from pipeline import inputs, sweep
from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.run import launch
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs
from pipeline.store import Store
from tests.pipeline.toy_stage import toy_stage
from train.settings import Compute, TrainingSettings

SETTINGS = {
    "tokens": 2048, "schedule_tokens": 2048, "batch_tokens": 128, "block_size": 32, "learning_rate": 1e-2,
    "min_lr_ratio": 0.1, "warmup_ratio": 0.1, "weight_decay": 0.1, "seed": 0,
}  # fmt: skip
ALONE = {"device": "cpu", "threads": 1}
TWO = {**ALONE, "strategy": "ddp", "processes": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.WordLevel({"<|end|>": 0, "word": 1}, unk_token="<|end|>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder / "model")
    (folder / "blocks").mkdir()
    np.save(
        folder / "blocks" / "blocks.npy", np.random.default_rng(0).zipf(1.5, (64, 32)).clip(0, 99).astype(np.uint16)
    )
    return folder


def job_in(folder: Path, compute: dict[str, Any]) -> Job:
    job = Job(
        toy_stage("ct", "test", options={"compute": compute, "save_every_tokens": 512}),
        folder / "out",
        folder / "scratch",
        {},
    )
    for place in (job.out, job.work):
        place.mkdir(parents=True, exist_ok=True)
    return job


def on_log(take: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """Pass the lines of a training's log on."""
    return lambda event, **fields: take(fields) if event == "log" else None


def train(job: Job, prepared: Path, **settings: Any) -> dict[str, Any]:
    return launch.train(job, prepared / "model", prepared / "blocks", TrainingSettings(**{**SETTINGS, **settings}))


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.out / "model" / "model.safetensors")


def child() -> int:
    return launch._running[0][0].pid


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    job = job_in(tmp_path_factory.mktemp("undisturbed"), ALONE)
    facts = train(job, prepared)
    assert facts == {
        "strategy": "none",
        "world_size": 1,
        "wrapper": "LlamaForCausalLM",
        "zero_stage": 0,
        "held_parameters": 1.0,
    }
    return weights(job)


def test_interrupted_killed_and_resumed_on_two_processes(
    prepared: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    job, seen = job_in(tmp_path, TWO), []

    def interrupt_early(record: dict[str, Any]) -> None:
        seen.append(record["tokens"])
        if record["tokens"] == 640:
            assert launch.interrupt(signal.SIGUSR2)

    job.emit = on_log(interrupt_early)
    with pytest.raises(Interrupted, match=r"^stopped after [\d,]+ of 2,048 tokens"):
        train(job, prepared)
    assert not launch.interrupt(signal.SIGUSR2), "nothing runs any more"
    saved = {path.name for path in job.work.glob("checkpoint-*")}

    workers: list[int] = []

    def kill_launcher(record: dict[str, Any]) -> None:
        seen.append(record["tokens"])
        if record["tokens"] == 1536:
            workers.extend(descendants(child()))
            os.kill(child(), signal.SIGKILL)

    job.emit = on_log(kill_launcher)
    with pytest.raises(RuntimeError, match=rf"exit code -9: .* \(its output: {tmp_path / 'output.log'}\)"):
        train(job, prepared)
    assert len(workers) == 2
    until = time.monotonic() + 300  # of a hang, not of slowness
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < until, "a worker outlived its launcher"
        time.sleep(0.1)

    job.emit = on_log(lambda record: seen.append(record["tokens"]))
    facts = train(job, prepared)
    assert (facts["world_size"], facts["wrapper"]) == (2, "DistributedDataParallel")
    measured = job.facts["performance"]
    assert measured["devices"] == 2 and measured["tokens_per_second_per_device"] > 0
    assert saved and 0 < seen.count(128) == 1, "it went on from what was saved"
    for name, tensor in weights(job).items():
        torch.testing.assert_close(tensor, undisturbed[name], atol=2e-6, rtol=1e-5)
    assert [json.loads(line)["tokens"] for line in (job.out / "log.jsonl").read_text().splitlines()] == list(
        range(128, 2049, 128)
    )


def test_a_child_of_one_process_saves_on_sigterm(
    prepared: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.AS_CHILD, "1")
    job = job_in(tmp_path, ALONE)
    job.emit = on_log(lambda record: os.kill(child(), signal.SIGTERM) if record["tokens"] == 640 else None)
    with pytest.raises(Interrupted, match="of 2,048 tokens"):
        train(job, prepared)
    job.emit = on_log(lambda record: None)
    train(job, prepared)
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights(job).items())
    with pytest.raises(BadInput, match="must be at most the corpus"):
        train(job, prepared, tokens=10**6)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if "train" in Path(f"/proc/{one}/cmdline").read_text()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_commands_of_one_and_of_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = launch.command(Compute(strategy="zero3", processes=4), Path("job.json"))
    assert (
        one[:4] == list(launch.IGNORE_SIGNALS)
        and "--standalone" in one
        and "--nproc_per_node=4" in one
        and one[-3:] == ["-m", "train", "job.json"]
    )
    monkeypatch.setenv(launch.RENDEZVOUS, "127.0.0.1")
    many = launch.command(Compute(strategy="zero3", processes=4, nodes=2), Path("job.json"))
    assert many[0] == "srun" and "--nodes=2" in many and "--nnodes=2" in many and "--nproc_per_node=4" in many
    assert any(part.startswith("--rdzv_endpoint=127.0.0.1:") for part in many)


def test_srun_starts_python_on_the_hosts_as_the_site_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the paths of the host: a container that calls srun has its own, where apptainer is not."""
    skip_options = 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'
    programs = {
        "inner/srun": f'printf "%s\\n" "$@" > "$RECORD/srun"; {skip_options}',
        "host/apptainer": 'printf "%s\\n" "$@" > "$RECORD/arguments"; echo "$LD_LIBRARY_PATH" > "$RECORD/libraries"',
    }
    for name, script in programs.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("RECORD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/inner:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/container")
    monkeypatch.setenv(launch.HOST_PATH, f"{tmp_path}/host:{os.environ['PATH']}")
    monkeypatch.setenv(launch.HOST_LIBRARIES, "/of/the/host")
    monkeypatch.setenv("IMAGE", "image one.sif")
    monkeypatch.setenv(launch.PYTHON, 'apptainer exec --nv "$IMAGE" python')
    subprocess.run(launch.command(Compute(strategy="zero3", processes=4, nodes=2), Path("job.json")), check=True)
    started = (tmp_path / "arguments").read_text().splitlines()
    assert started[:6] == ["exec", "--nv", "image one.sif", "python", "-m", "torch.distributed.run"]
    assert started[-3:] == ["-m", "train", "job.json"] and "--nnodes=2" in started
    assert (tmp_path / "libraries").read_text() == "/of/the/host\n"
    assert sys.executable not in (tmp_path / "srun").read_text()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["compute=gpu", "compute.liger=true"],
            r"^compute\.liger=true: needs liger-kernel, which is not installed\. .* or set compute\.liger=false\.$",
        ),
        (
            ["compute=gpu", "compute.attention=flash_attention_2"],
            r"^compute\.attention=flash_attention_2: needs flash-attn",
        ),
        (["compute=zero3"], r"^compute\.strategy=zero3: needs deepspeed"),
    ],
)
def test_a_package_that_is_not_there_is_named(overrides: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sweep.expand(["experiment=test", "compute.processes=1", *overrides], multirun=False).configs[0]
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=says):
        inputs.check_compute(config.compute)


def test_the_record_says_how_a_training_ran(tmp_path: Path) -> None:
    def maker(job: Job) -> None:
        job.facts["launched"] = {
            "strategy": "zero3",
            "world_size": 2,
            "wrapper": "DeepSpeedEngine",
            "zero_stage": 3,
        }
        (job.out / "weights").write_text("here")

    stage, store = toy_stage("sft", "test", {"tokens": 10}), Store(tmp_path / "store")
    journal = Journal(tmp_path / "journal.jsonl")
    Executor(store, [stage], journal, maker=lambda kind: maker).compute([stage])
    entry = store.find(stage)
    assert entry and entry.record["launched"]["zero_stage"] == 3


def test_a_training_is_watched_on_the_text_of_its_language_and_not_of_its_base() -> None:
    """The cipher's base was trained on Chichewa, whose corpus is an ancestor too."""
    watched_both = ["ct.dev_every_tokens=10k", "sft.dev_every_tokens=10k"]
    settings = ["experiment=cosine", "language=cipher", "ct.tokens=50k", "model=recipe_b", "model.path=null"]
    (config, *_) = sweep.expand([*settings, *watched_both], multirun=True).configs
    trainings = [
        stage for stage in plan_cell(config, Inputs()).stages if getattr(stage.options, "dev_every_tokens", None)
    ]
    assert {stage.kind for stage in trainings} == {"ct", "sft"}
    for stage in trainings:
        job = Job(stage, Path("out"), Path("work"), {}, materialize=lambda found: Path(str(found.settings.language)))
        watched = launch.watched_text(job)
        assert watched is not None and watched.languages == ("cipher", "en")
        assert Path(watched.corpus).name == "cipher"


def test_a_training_that_reads_no_corpus_cannot_be_watched() -> None:
    commit = "0" * 40
    hub = f"sft.hub={{dataset:x/y,subset:null,files:null,split:train,revision:'{commit}',prompt:a,answer:b,bytes:1MB}}"
    with pytest.raises(BadInput, match=r"^sft\.dev_every_tokens=10k: this SFT trains"):
        sweep.expand(["experiment=test", hub, "sft.replay_fraction=0", "sft.dev_every_tokens=10k"], False)
