"""The worst that people give, beside tests/pipeline/test_bad_input.py: one line, exit code 2, nothing computed.

Each row says what is given and how the line begins.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.run import cells
from tests.messages import assert_wording

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "tiny-base"
MINE = "language=mine corpus.path="
TIES = "merge.methods.ties_sv_1"

CASES = """
seed=1.5                                     | seed=1.5:
seed=null                                    | seed=null:
seed=4294967296                              | seed=4294967296:
seed=99999999999999999999                    | seed=99999999999999999999:
-m seed=0,0                                  | language.code=.* seed=0:
ct.tokens=-5                                 | ct.tokens=-5:
ct.tokens=nan                                | ct.tokens=nan:
ct.tokens=[1k,2k]                            | ct.tokens=\\['1k', '2k'\\]:
ct.tokens={a:1}                              | ct.tokens={'a':
ct.tokens=                                   | ct.tokens=:
ct.tokens=1000                               | ct.tokens=1000:
-m ct.tokens=                                | ct.tokens=:
ct.learning_rate=nan                         | ct.learning_rate=nan:
ct.learning_rate=1                           | ct.learning_rate=1:
ct.learning_rate=-1e-3                       | ct.learning_rate=-0.001:
ct.warmup_ratio=1                            | ct.warmup_ratio=1:
ct.min_lr_ratio=2                            | ct.min_lr_ratio=2:
ct.weight_decay=-1                           | ct.weight_decay=-1:
ct.english_fraction=-0.1                     | ct.english_fraction=-0.1:
ct.block_size=0                              | ct.block_size=0:
ct.block_size=1                              | ct.block_size=1:
sft.block_size=1                             | sft.block_size=1:
ct.save_every_tokens=0                       | ct.save_every_tokens=0:
ct.source=nowhere                            | ct.source=nowhere:
ct.source=hub:nothing                        | ct.source=hub:nothing:
ct=null                                      | .*Config group override
~ct.tokens                                   | ct.tokens:
sft.items=0                                  | sft.items=0:
sft.schedule_tokens=1k                       | sft.schedule_tokens=1k:
sft.replay_fraction=1                        | sft.replay_fraction=1:
eval.limit=0                                 | eval.limit=0:
eval.tune_limit=0                            | eval.tune_limit=0:
eval.max_chars=0                               | eval.max_chars=0:
eval.batch_tokens=0                          | eval.batch_tokens=0:
eval.families=[nosuch]                       | eval.families:
eval.families=[next,next]                    | eval.families:
eval.families=[]                             | eval.families=\\[\\]:
eval.families=[] merge=none                  | eval.families=\\[\\]: SFT
eval.families=[] merge=none eval.baselines=[target_sft] | eval.families=\\[\\]: SFT
{MINE}TMP/text.txt eval.families=[genre]     | eval.families=\\[genre\\]:
{MINE}TMP/text.txt eval.families=[genre] merge=none | eval.families=\\[genre\\]:
eval.baselines=[nothing]                     | eval.baselines
eval.baselines=[] merge=none                 | eval.baselines=\\[\\]:
eval.baselines={}                            | eval.baselines={}: must be a list
merge.methods=[]                             | merge.methods=\\[\\]: must be a mapping
eval.split=train                             | eval.split=train:
eval.dtype=float16                           | eval.dtype=float16:
language.code=NYA                            | language.code=NYA:
language.code=                               | language.code=:
language.name=null                           | language.name=null:
-m language=nya,xyz                          | language=xyz:
corpus.dev=0.6                               | corpus.dev=0.6:
corpus.test=0                                | corpus.test=0:
corpus.source=nothing                        | corpus.source=nothing:
corpus=nothing                               | corpus=nothing:
name=../x                                    | name=../x:
name=                                        | name=:
name=ናያ                                      | name=ናያ:
store=                                       | store=:
store=null                                   | store=null:
store=/dev/null                              | store=/dev/null:
store=TMP/text.txt/store                     | store=.*:
outputs=TMP/text.txt                         | outputs=.*:
store=${nothing}                             | .*nothing
model.recipe=null                            | model.path=null:
model.recipe.vocabulary=10                   | model.recipe.vocabulary=10:
model.recipe.hidden_size=33                  | model.recipe.hidden_size=33:
model.recipe.layers=0                        | model.recipe.layers=0:
model.recipe.tokens=1                        | model.recipe.tokens=1:
compute.threads=0                            | compute.threads=0:
compute.threads=1000000                      | compute.threads=1000000:
compute.device=tpu                           | compute.device=tpu:
compute.processes=0                          | compute.processes=0:
compute.precision=fp8                        | compute.precision=fp8:
compute.precision=fp16                       | compute.precision=fp16:
compute=gpu compute.attention=flash_attention_2 compute.precision=fp32 | compute.attention=.*:
compute.stage_seconds={ctt:3}                  | compute.stage_seconds.ctt:
+compute.stage_seconds.ctt=3                   | compute.stage_seconds.ctt:
tracking.wandb=perhaps                       | tracking.wandb=perhaps:
merge.metric=f1                              | merge.metric=f1:
merge.methods=null                           | merge.methods=null:
{TIES}.recipe.foo=1                          | {TIES}.recipe.foo:
{TIES}.recipe.slack=nan                      | {TIES}.recipe:
{TIES}.recipe.protect=[foo]                  | {TIES}.recipe:
{TIES}.recipe.protect=[]                     | {TIES}.recipe:
{TIES}.grid.density=0.5                      | {TIES}.grid.density=0.5:
+{TIES}.recipe.models={foo:{weight:1}}       | {TIES}.recipe:
+{TIES}.recipe.models={ct:{wight:1}}         | {TIES}.recipe:
+merge.methods.Bad-Name={recipe:{method:ties},grid:{}} | merge.methods.Bad-Name:
train=lora train.lora.alpha=0                | train.lora.alpha=0:
train=lora train.lora.targets=[]             | train.lora.targets=\\[\\]:
train=lora train.lora.targets=[foo_proj]     | train.lora.targets:
launcher=slurm site=nosuch                   | site=nosuch:
launcher=nosuch                              | hydra/launcher=nosuch:
cluster=8xH100                               | cluster:
plan cluster=foo                             | CLUSTER=foo:
plan cluster=8xH100 mfu=2                    | mfu=2:
=5                                           | .*Config group override
ct..tokens=5                                 | ct..tokens=5:
+x=1                                         | x:
{MINE}TMP/cut.jsonl                          | corpus.path:
{MINE}TMP/no_text.jsonl                      | corpus.path:
{MINE}TMP/list.jsonl                         | corpus.path:
{MINE}TMP/blank.txt                          | corpus.path:
{MINE}TMP/no.parquet                         | corpus.path:
{MINE}TMP/late.txt                           | corpus.path:
{MINE}TMP/deep.jsonl                         | corpus.path:
{MINE}TMP/digits.jsonl                       | corpus.path:
{MINE}TMP/half_letter.jsonl                  | corpus.path:
{MINE}TMP/numbers.parquet                    | corpus.path:
{MINE}TMP/damaged.parquet                    | corpus.path:
{MINE}TMP/loop.txt                           | corpus.path:
{MINE}LONG                                   | corpus.path:
sft.path=LONG                                | sft.path:
sft.path=TMP/deep.jsonl                      | sft.path:
sft.path=TMP/half_letter.jsonl               | sft.path:
ct.source=LONG                               | ct.source=x+:
eval.include_path=LONG                       | eval.include_path=x+:
store=LONG                                   | store=x+:
outputs=LONG                                 | outputs=x+:
model.path=LONG                              | model.path=x+:
model.path=hub:a/b@/bin/ls                   | model.path=hub:a/b@/bin/ls:
model.path=TMP/nested                        | .*nested/config.json:
model.path=TMP/digits                        | .*digits/config.json:
model.path=TMP/latin                         | .*latin/config.json:
model.path=TMP/bom                           | .*bom/config.json:
model.path=TMP/two_types                     | .*two_types/config.json:
model.path=TMP/weights_folder                | model.path=.*:
model.path=TMP/weights_elsewhere             | model.path=.*:
model.path=TMP/weights_loop                  | model.path=.*:
sft.path=TMP/no_text.jsonl                   | sft.path:
sft.path=TMP/no_answer.jsonl                 | sft.path:
model.path=TMP/text.txt                      | model.path=.*text.txt:
model.path=TMP/not_json                      | .*not_json/config.json:
model.path=TMP/not_object                    | .*not_object/config.json:
model.path=TMP/no_causal_model               | model.path=.*:
model.path=TMP/own_code                      | model.path=.*:
model.path=TMP/short                         | ct.block_size=128:
model.path=TMP/other_vocabulary              | model.path=.*:
model.path=TMP/cut_off                       | .*model.safetensors
eval.include_path=TMP/broken_yaml            | tasks:
""".replace("{TIES}", TIES).replace("{MINE}", MINE)
ROWS = [tuple(part.strip() for part in line.split(" | ")) for line in CASES.strip().splitlines()]
CONFIGS = {
    "no_causal_model": {"model_type": "t5"},
    "own_code": {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"}},
    "short": {"max_position_embeddings": 64},
    "other_vocabulary": {"vocab_size": 100},
    "two_types": {"model_type": ["llama", "llama"]},
}
NO_CONFIGS = {
    "not_json": b"{",
    "not_object": b"[]",
    "nested": b"[" * 200_000,
    "digits": b'{"model_type": ' + b"9" * 5000 + b"}",
    "latin": b'{"model_type": "\xe9"}',
    "bom": b"\xef\xbb\xbf{}",
}
NO_WEIGHTS = ("weights_folder", "weights_elsewhere", "weights_loop")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and checkpoints that are each wrong in one way."""
    from pyarrow import parquet, table

    folder = tmp_path_factory.mktemp("worst")
    for name, content in {
        "text.txt": "Some text.\n\nMore text.\n",
        "cut.jsonl": '{"text": "mawu"}\n{"text": "ena"}\n{"text": "mawu e',
        "no_text.jsonl": '{"txt": "mawu"}\n',
        "list.jsonl": "[1, 2]\n",
        "blank.txt": "\n\n \n\n",
        "no.parquet": "not Parquet",
        "no_answer.jsonl": '{"instruction": "say", "input": "", "output": " "}\n',
        "deep.jsonl": '{"text": ' + "[" * 100_000,
        "digits.jsonl": '{"text": ' + "9" * 5000 + "}",
        "half_letter.jsonl": '\n{"text": "\\ud800", "instruction": "\\ud800", "input": "", "output": ""}\n',
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "late.txt").write_bytes(b"mawu ena\n\n" * 150_000 + b"caf\xe9\n")
    (folder / "broken_yaml").mkdir()
    (folder / "broken_yaml" / "x.yaml").write_text("task: [\n")
    (folder / "loop.txt").symlink_to("loop.txt")
    parquet.write_table(table({"text": [1, 2]}), folder / "numbers.parquet")
    parquet.write_table(table({"text": ["mawu ena " * 999]}), folder / "damaged.parquet", compression="gzip")
    damaged = (folder / "damaged.parquet").read_bytes()
    (folder / "damaged.parquet").write_bytes(damaged[:4] + bytes(100) + damaged[104:])
    for name in (*CONFIGS, *NO_CONFIGS, *NO_WEIGHTS, "cut_off", "no_tokenizer"):
        shutil.copytree(SHIPPED, folder / name)
        described = json.loads((SHIPPED / "config.json").read_text()) | CONFIGS.get(name, {})
        (folder / name / "config.json").write_text(json.dumps(described))
    (folder / "own_code" / "code.py").write_text(f"open({str(folder / 'it_ran')!r}, 'w')\n")
    for name, content in NO_CONFIGS.items():
        (folder / name / "config.json").write_bytes(content)
    for name in NO_WEIGHTS:
        (folder / name / "model.safetensors").unlink()
    (folder / "weights_folder" / "model.safetensors").mkdir()
    (folder / "weights_elsewhere" / "model.safetensors").symlink_to("/nonexistent")
    (folder / "weights_loop" / "model.safetensors").symlink_to("model.safetensors")
    (folder / "no_tokenizer" / "tokenizer.json").write_text("{}")
    weights = folder / "cut_off" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def test_there_are_a_hundred_and_none_twice() -> None:
    assert len({given for given, _ in ROWS}) == len(ROWS) >= 100


@pytest.mark.parametrize(("given", "key"), ROWS, ids=[given for given, _ in ROWS])
def test_one_line_and_exit_code_2(
    given: str,
    key: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def computes(*_: object) -> None:
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr(cells, "run_executor", computes)
    monkeypatch.setattr(cells, "compute_cells", computes)
    words = given.replace("TMP", str(files)).replace("LONG", "x" * 300).split()
    verb = [words.pop(0)] if words[0] in cli.VERBS else []
    places = [f"{key}={tmp_path}/{key}" for key in ("store", "outputs") if not given.startswith(key)]
    verses = ["model.recipe.aligned_fraction=0"] if "language=mine" in words else []  # which other languages lack
    code = cli.pipeline_main([*verb, "experiment=test", *places, *verses, *words])
    said = capsys.readouterr().err
    assert (code, len(said.splitlines())) == (2, 1), said
    assert re.match(key, said), said
    assert_wording(f"worst input: {given}", said, TMP=files, OUT=tmp_path, ROOT=ROOT, LONG="x" * 300)
    assert not (tmp_path / "outputs").exists()
    assert not (files / "it_ran").exists()


def test_a_file_that_two_checks_read_is_named_by_each(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={files}/no_tokenizer", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]
    assert cli.pipeline_main(["check", "experiment=test", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said and all("no_tokenizer/tokenizer.json: " in line for line in said)
