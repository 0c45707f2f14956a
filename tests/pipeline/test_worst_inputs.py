"""The worst that people give, beside tests/pipeline/test_bad_input.py: one line, exit code 2, nothing computed.

Each row says what is given and how the line begins.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import __main__ as entry
from pipeline.run import sweep_run

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "tiny-base"
MINE = "language=mine corpus.path="
TIES = "merge.methods.ties_sv_1"

CASES = """
seed=1.5                                     | seed=1.5: input should be a valid integer
seed=null                                    | seed=null: input should be a valid integer
seed=4294967296                              | seed=4294967296: input should be less than 4294967296
seed=99999999999999999999                    | seed=99999999999999999999: input should be less than
-m seed=0,0                                  | the sweep has the cell .* twice
ct.tokens=-5                                 | ct.tokens=-5: give a number of tokens
ct.tokens=nan                                | ct.tokens=nan: give a number of tokens
ct.tokens=null                               | ct.tokens=null: give a number of tokens
ct.tokens=[1k,2k]                            | ct.tokens=\\['1k', '2k'\\]: give a number of tokens
ct.tokens={a:1}                              | ct.tokens={'a': 1}: give a number of tokens
ct.tokens=                                   | ct.tokens=: give a number of tokens
ct.tokens=1000                               | ct.tokens=1000: is less than one step of batch_tokens=1024
-m ct.tokens=                                | ct.tokens=: give a number of tokens
ct.learning_rate=nan                         | ct.learning_rate=nan: input should be
ct.learning_rate=1                           | ct.learning_rate=1: input should be less than 1
ct.learning_rate=-1e-3                       | ct.learning_rate=-0.001: input should be greater than 0
ct.warmup_ratio=1                            | ct.warmup_ratio=1: input should be less than 1
ct.min_lr_ratio=2                            | ct.min_lr_ratio=2: input should be less than or equal to 1
ct.weight_decay=-1                           | ct.weight_decay=-1: input should be greater than or equal to 0
ct.english_share=-0.1                        | ct.english_share=-0.1: input should be greater than or equal to 0
ct.block_size=0                              | ct.block_size=0: input should be greater than or equal to 2
ct.block_size=1                              | ct.block_size=1: input should be greater than or equal to 2
sft.block_size=1                             | sft.block_size=1: input should be greater than or equal to 2
ct.save_every_tokens=0                       | ct.save_every_tokens=0: give a whole, positive number
ct.source=nowhere                            | ct.source=nowhere: no such folder
ct.source=hub:nothing                        | ct.source=hub:nothing: a model of the hub is hub:owner/name
ct=null                                      | .*Config group override must be a string
~ct.tokens                                   | ct.tokens is missing; every key needs a value
sft.items=0                                  | sft.items=0: input should be greater than 0
sft.schedule_tokens=1k                       | sft.schedule_tokens=1k: must not end before sft.tokens
sft.replay_share=1                           | sft.replay_share=1: input should be less than 1
eval.limit=0                                 | eval.limit=0: input should be greater than 0
eval.tune_limit=0                            | eval.tune_limit=0: input should be greater than 0
eval.excerpt=0                               | eval.excerpt=0: input should be greater than 0
eval.batch_tokens=0                          | eval.batch_tokens=0: give a whole, positive number
eval.families=[nosuch]                       | eval.families: 'nosuch' is unknown; choose from
eval.families=[next,next]                    | eval.families: 'next' stands twice
eval.families=[]                             | eval.families=\\[\\]: merges are chosen by their accuracy
eval.unmerged=[nothing]                      | eval.unmerged
eval.unmerged=[] merge=none                  | eval.unmerged=\\[\\]: .*nothing would be scored
eval.split=train                             | eval.split=train: input should be 'dev' or 'test'
eval.dtype=float16                           | eval.dtype=float16: input should be 'float32' or 'bfloat16'
language.code=NYA                            | language.code=NYA: string should match
language.code=                               | language.code=: string should match
language.name=null                           | language.name=null: input should be a valid string
-m language=nya,xyz                          | language=xyz: no such choice
corpus.dev=0.6                               | corpus.dev=0.6: input should be less than 0.5
corpus.test=0                                | corpus.test=0: input should be greater than 0
corpus.source=nothing                        | corpus.source=nothing: choose
corpus=nothing                               | corpus=nothing: no such choice
name=../x                                    | name=../x: string should match
name=                                        | name=: string should match
name=ናያ                                      | name=ናያ: Hydra cannot read it as key=value
store=                                       | store=: string should have at least 1 character
store=null                                   | store=null: input should be a valid string
store=/dev/null                              | store=/dev/null: /dev/null is not a folder
store=TMP/text.txt/store                     | store=.*: .*text.txt is not a folder
outputs=TMP/text.txt                         | outputs=.*: .*text.txt is not a folder
store=${nothing}                             | Interpolation key 'nothing' not found
model.recipe=null                            | model.path=null: give a local Hugging Face folder, or a recipe
model.recipe.vocabulary=10                   | model.recipe.vocabulary=10: input should be greater than or equal to 258
model.recipe.hidden_size=33                  | model.recipe.hidden_size=33: must be an even multiple of heads
model.recipe.layers=0                        | model.recipe.layers=0: input should be greater than 0
model.recipe.tokens=1                        | model.recipe.tokens=1: is less than one step
compute.threads=0                            | compute.threads=0: input should be greater than 0
compute.threads=1000000                      | compute.threads=1000000: input should be less than or equal to 1024
compute.device=tpu                           | compute.device=tpu: input should be 'cpu' or 'cuda'
compute.processes=0                          | compute.processes=0: input should be greater than 0
compute.precision=fp8                        | compute.precision=fp8: input should be 'fp32', 'bf16' or 'fp16'
compute.precision=fp16                       | compute.precision=fp16: needs a GPU, got device=cpu
compute=gpu compute.attention=flash_attention_2 compute.precision=fp32 | compute.attention=.*: computes in 16 bits
compute.first_guess={ctt:3}                  | compute.first_guess: has no such key; keys are added one by one
+compute.first_guess.ctt=3                   | compute.first_guess.ctt: unknown kind of stage
tracking.wandb=perhaps                       | tracking.wandb=perhaps: input should be
merge.metric=f1                              | merge.metric=f1: input should be 'acc' or 'bits_per_byte'
merge.methods=null                           | merge.methods=null: input should be a valid dictionary
{TIES}.recipe.foo=1                          | {TIES}.recipe.foo: unknown key
{TIES}.recipe.slack=nan                      | {TIES}.recipe: slack: .*got nan
{TIES}.recipe.protect=[foo]                  | {TIES}.recipe: protect: no model is called 'foo'
{TIES}.recipe.protect=[]                     | {TIES}.recipe: protect: name the model
{TIES}.grid.density=0.5                      | {TIES}.grid.density=0.5: input should be a valid list
+{TIES}.recipe.models={foo:{weight:1}}       | {TIES}.recipe: models.foo.path: missing
+{TIES}.recipe.models={ct:{wight:1}}         | {TIES}.recipe: models.ct: method ties_sv has no key wight
+merge.methods.Bad-Name={recipe:{method:ties},grid:{}} | merge.methods.Bad-Name: a method's name has
train=lora train.lora.alpha=0                | train.lora.alpha=0: input should be greater than 0
train=lora train.lora.targets=[]             | train.lora.targets=\\[\\]: input should be
train=lora train.lora.targets=[foo_proj]     | train.lora.targets: 'foo_proj' is none of q_proj
launcher=slurm site=nosuch                   | site=nosuch: no such file
launcher=nosuch                              | hydra/launcher=nosuch: no such choice
cluster=8xH100                               | cluster: unknown key or group
plan cluster=foo                             | CLUSTER=foo: say how many of which GPU
plan cluster=8xH100 mfu=2                    | mfu=2: give the share of the peak
=5                                           | .*Config group override must be a string
ct..tokens=5                                 | ct..tokens=5: Hydra cannot read it as key=value
+x=1                                         | x: unknown key
{MINE}TMP/cut.jsonl                          | corpus.path: .*cut.jsonl line 3: not JSON
{MINE}TMP/no_text.jsonl                      | corpus.path: .*no_text.jsonl line 1 lacks the text field 'text'
{MINE}TMP/list.jsonl                         | corpus.path: .*list.jsonl line 1: Input should be an object
{MINE}TMP/blank.txt                          | corpus.path: .*blank.txt holds no text
{MINE}TMP/no.parquet                         | corpus.path: .*no.parquet is not a Parquet file
{MINE}TMP/late.txt                           | corpus.path: .*late.txt is not UTF-8
{MINE}TMP/deep.jsonl                         | corpus.path: .*deep.jsonl line 1: not JSON .recursion limit
{MINE}TMP/digits.jsonl                       | corpus.path: .*digits.jsonl line 1: not JSON .number out of range
{MINE}TMP/half_letter.jsonl                  | corpus.path: .*half_letter.jsonl line 2: not JSON .*hex escape at column
{MINE}TMP/numbers.parquet                    | corpus.path: .*numbers.parquet has a column 'text' of int64
{MINE}TMP/damaged.parquet                    | corpus.path: .*damaged.parquet is a damaged Parquet file
{MINE}TMP/loop.txt                           | corpus.path: .*loop.txt is no file
{MINE}LONG                                   | corpus.path: no file matches
sft.path=LONG                                | sft.path: no file matches
sft.path=TMP/deep.jsonl                      | sft.path: .*deep.jsonl line 1: not JSON .recursion limit
sft.path=TMP/half_letter.jsonl               | sft.path: .*half_letter.jsonl line 2: not JSON .*hex escape at column
ct.source=LONG                               | ct.source=x+: no such folder
eval.include_path=LONG                       | eval.include_path=x+: no such folder
store=LONG                                   | store=x+: File name too long
outputs=LONG                                 | outputs=x+: File name too long
model.path=LONG                              | model.path=x+: no such folder
model.path=hub:a/b@/bin/ls                   | model.path=hub:a/b@/bin/ls: a model of the hub is hub:owner/name
model.path=TMP/nested                        | .*nested/config.json: not JSON .recursion limit
model.path=TMP/digits                        | .*digits/config.json: not JSON .number out of range
model.path=TMP/latin                         | .*latin/config.json: not JSON .invalid unicode
model.path=TMP/bom                           | .*bom/config.json: not JSON .expected value
model.path=TMP/two_types                     | .*two_types/config.json: model_type: Input should be a valid string
model.path=TMP/weights_folder                | model.path=.*: has no weights .*; save the model as safetensors
model.path=TMP/weights_elsewhere             | model.path=.*: has no weights .*; save the model as safetensors
model.path=TMP/weights_loop                  | model.path=.*: has no weights .*; save the model as safetensors
sft.path=TMP/no_text.jsonl                   | sft.path: .*no_text.jsonl line 1 lacks the text field 'instruction'
sft.path=TMP/no_answer.jsonl                 | sft.path: .*no_answer.jsonl line 1: the field '.*' is empty
model.path=TMP/text.txt                      | model.path=.*text.txt: no such folder
model.path=TMP/not_json                      | .*not_json/config.json: not JSON
model.path=TMP/not_object                    | .*not_object/config.json: Input should be an object
model.path=TMP/no_causal_model               | model.path=.*: model_type 't5' .* is no causal language model
model.path=TMP/own_code                      | model.path=.* code that comes with a checkpoint is not run
model.path=TMP/short                         | ct.block_size=128: model.path=.*short reads 64 tokens
model.path=TMP/other_vocabulary              | model.path=.* embeds 2048 tokens, config.json says vocab_size 100
model.path=TMP/cut_off                       | .*model.safetensors
eval.include_path=TMP/broken_yaml            | tasks: .*x.yaml: 
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


@pytest.mark.parametrize(("given", "line"), ROWS, ids=[given for given, _ in ROWS])
def test_one_line_and_exit_code_2(
    given: str,
    line: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def computes(*_: object) -> None:
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr(sweep_run, "worker", computes)
    monkeypatch.setattr(sweep_run.local, "make", computes)
    words = given.replace("TMP", str(files)).replace("LONG", "x" * 300).split()
    verb = [words.pop(0)] if words[0] in entry.VERBS else []
    places = [f"{key}={tmp_path}/{key}" for key in ("store", "outputs") if not given.startswith(key)]
    code = entry.main([*verb, "experiment=test", *places, *words])
    said = capsys.readouterr().err
    assert (code, len(said.splitlines())) == (2, 1), said
    assert re.match(line, said), said
    assert not (tmp_path / "outputs").exists()
    assert not (files / "it_ran").exists()


def test_a_file_that_two_checks_read_is_named_by_each(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={files}/no_tokenizer", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]
    assert entry.main(["check", "experiment=test", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said and all("no_tokenizer/tokenizer.json: " in line for line in said)
