"""Whatever stands in a header, an index, a config, a tokenizer, an adapter or a recipe: success, or one line and 2.

The same 2,900 cases each time; SLACKMERGE_FUZZ=10 takes ten times as many, others each time.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge.cli import main

TIMES = int(os.environ.get("SLACKMERGE_FUZZ", "1"))
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
RECIPE: dict[str, Any] = {"method": "ties", "base": "base", "models": {"ct": {"path": "ct", "density": 0.5}}}
MERGEKIT: dict[str, Any] = {
    "merge_method": "ties", "base_model": "base", "models": [{"model": "ct", "parameters": {"weight": 1.0}}]
}  # fmt: skip

words = st.one_of(
    st.text(max_size=8), st.sampled_from(["a\nb", "\0", "../x", "/etc", "*", "nan", "ct", "base", "\ud800"])
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**400, 1e308]), st.integers(0, 64)
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


def cases(count: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * TIMES, deadline=None, derandomize=TIMES == 1, database=None, suppress_health_check=checks
    )


def mutated(good: dict[str, Any], *keys: str) -> st.SearchStrategy[Any]:
    """A good mapping with some keys replaced, added or removed, at the top or one level below."""
    change = st.dictionaries(st.one_of(st.sampled_from([*good, *keys]), words), junk, max_size=3)
    below = [key for key, value in good.items() if isinstance(value, dict)]
    nested = (
        st.builds(lambda key, more: {key: good[key] | more}, st.sampled_from(below), change) if below else st.just({})
    )
    return st.builds(lambda more, inner, gone: {k: v for k, v in (good | inner | more).items() if k not in gone},
                     change, nested, st.sets(st.sampled_from(list(good)), max_size=1))  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base and ct, of three small tensors, and a LoRA; the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("base", 0.0), ("ct", 1.0)):
        Path(name).mkdir()
        save_file({key: torch.full((2, 4), value) for key in NAMES}, f"{name}/model.safetensors")
        Path(name, "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
        Path(name, "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}')
    Path("lora").mkdir()
    at = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{at}.lora_A.weight": torch.ones(1, 4), f"{at}.lora_B.weight": torch.ones(2, 1)}
    save_file(factors, "lora/adapter_model.safetensors")
    Path("lora/adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    Path("merge.yml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def try_it(*arguments: str, recipe: tuple[str, ...] = ("merge.yml",)) -> int:
    """Run the command line: it ends with 0, or with 2 and one line."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = main([*recipe, *arguments])
    said = error.getvalue()
    assert (code, said) == (0, "") or (code == 2 and re.fullmatch(r"merge: [^\n]+\n", said)), (code, said)
    return code


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


entries = st.one_of(
    junk,
    st.fixed_dictionaries({
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "I8", "F8_E4M3"]), junk),
        "shape": st.one_of(st.lists(st.integers(-1, 4), max_size=3), junk),
        "data_offsets": st.one_of(st.lists(st.sampled_from([-4, 0, 4, 8, 32, 64]), max_size=3), junk),
    }),
)  # fmt: skip


def sound(dtype: str, rows: int) -> dict[str, Any]:
    """A header that is right if the dtype has four bytes."""
    size = 16 * rows
    return {
        name: {"dtype": dtype, "shape": [rows, 4], "data_offsets": [size * i, size * (i + 1)]}
        for i, name in enumerate(NAMES)
    }


headers = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from([*NAMES, "__metadata__"]), words), entries, max_size=4).map(dumped),
    st.builds(
        lambda dtype, rows, more: dumped(sound(dtype, rows) | more),
        st.sampled_from(["F32", "I32", "F16"]),
        st.integers(0, 3),
        st.dictionaries(words, entries, max_size=1),
    ),
    junk.map(dumped),
    st.binary(max_size=40),
)


@given(
    headers, st.one_of(st.none(), st.integers(0, 200), st.sampled_from([2**32, 2**63, 2**64 - 1])), st.integers(0, 160)
)
@cases(600)
def test_headers(folders: Path, header: bytes, length: int | None, data: int) -> None:
    said = len(header) if length is None else length
    Path("ct/model.safetensors").write_bytes(said.to_bytes(8, "little") + header + b"\0" * data)
    if try_it("--plan") == 0:
        try_it("out")
        shutil.rmtree("out", ignore_errors=True)
    assert not list(folders.glob(".*"))


@given(st.one_of(junk, st.fixed_dictionaries({"weight_map": st.one_of(junk, st.dictionaries(
    st.one_of(st.sampled_from(NAMES), words),
    st.one_of(st.sampled_from(["shard.safetensors", "../base/model.safetensors", "/dev/zero", "."]), junk), max_size=4,
))})))  # fmt: skip
@cases(300)
def test_indices(folders: Path, index: Any) -> None:
    if Path("ct/model.safetensors").exists():
        Path("ct/model.safetensors").rename("ct/shard.safetensors")
    Path("ct/model.safetensors.index.json").write_bytes(dumped(index))
    try_it("--plan")


CONFIG = {"model_type": "llama", "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}, "added_tokens": [{"id": 2, "content": "c"}]}


@given(st.one_of(junk, mutated(CONFIG, "architectures")), st.one_of(junk, mutated(TOKENIZER)))
@cases(300)
def test_configs_and_tokenizers(folders: Path, config: Any, tokenizer: Any) -> None:
    Path("base/config.json").write_bytes(dumped(config))
    try_it("--plan")
    Path("base/config.json").write_text("{}")
    Path("ct/tokenizer.json").write_bytes(dumped(tokenizer))
    try_it("--plan")


LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 8, "alpha_pattern": {"up_proj": 2}, "rank_pattern": {"up_proj": 1}}


@given(st.one_of(junk, mutated(LORA, "init_lora_weights", "use_rslora", "bias", "use_dora", "modules_to_save")))
@cases(300)
def test_adapters(folders: Path, config: Any) -> None:
    Path("merge.yml").write_text(yaml.safe_dump(RECIPE | {"models": {"ct": {"path": "ct", "adapter": "lora"}}}))
    Path("lora/adapter_config.json").write_bytes(dumped(config))
    try_it("--plan")


@given(st.one_of(junk, mutated(TOKENIZER)), st.sampled_from(["union", "base", "ct"]))
@cases(200)
def test_vocabularies(folders: Path, tokenizer: Any, source: str) -> None:
    Path("merge.yml").write_text(yaml.safe_dump(RECIPE | {"tokenizer": source, "chat_template": "auto"}))
    Path("ct/tokenizer.json").write_bytes(dumped(tokenizer))
    try_it("--plan")


KEYS = (
    "tokenizer",
    "chat_template",
    "lambda",
    "normalize",
    "rescale",
    "election",
    "slack",
    "protect",
    "seed",
    "compute_dtype",
    "out_dtype",
    "exact",
)


@given(st.one_of(mutated(RECIPE, *KEYS), mutated({**RECIPE, "models": {"path": "ct", "weight": 1}})))
@cases(300)
def test_recipes(folders: Path, recipe: Any) -> None:
    Path("merge.yml").write_text(yaml.dump(recipe))
    try_it("--plan")


SLICED: dict[str, Any] = {
    "merge_method": "linear",
    "slices": [{"sources": [{"model": "ct", "layer_range": [0, 1], "parameters": {"weight": 1.0}}]}],
}
OURS: dict[str, Any] = {
    "method": "passthrough", "models": {"ct": {"path": "ct"}}, "slices": [{"layers": 0, "models": {"ct": {"scale": 2}}}]
}  # fmt: skip


@given(
    st.one_of(
        mutated(SLICED, "base_model", "parameters", "dtype"),
        mutated(OURS, "base", "layers"),
        st.builds(lambda part: SLICED | {"slices": [part]}, mutated(SLICED["slices"][0], "base_model", "parameters")),
        st.builds(
            lambda one: SLICED | {"slices": [{"sources": [one]}]}, mutated(SLICED["slices"][0]["sources"][0], "layers")
        ),
        st.builds(lambda part: OURS | {"slices": [part]}, mutated(OURS["slices"][0], "base", "layers", "t")),
    )
)
@cases(300)
def test_slices(folders: Path, recipe: Any) -> None:
    Path("base/config.json").write_text('{"num_hidden_layers": 1}')
    Path("ct/config.json").write_text('{"num_hidden_layers": 1}')
    Path("merge.yml").write_text(yaml.dump(recipe))
    if try_it("--plan") == 0:
        try_it("out")
        shutil.rmtree("out", ignore_errors=True)


@given(
    st.lists(
        st.one_of(mutated(RECIPE | {"name": "a"}), mutated(MERGEKIT | {"name": "b"}), mutated(SLICED, "name"), junk),
        max_size=3,
    ),
    st.booleans(),
)
@cases(200)
def test_stages(folders: Path, stages: list[Any], listed: bool) -> None:
    Path("merge.yml").write_text(yaml.dump(stages) if listed else yaml.dump_all(stages))
    try_it("--plan")


@given(mutated(MERGEKIT, "slices", "parameters", "dtype", "out_dtype", "tokenizer_source", "chat_template"))
@cases(300)
def test_mergekit_configs(folders: Path, config: Any) -> None:
    Path("merge.yml").write_text(yaml.dump(config))
    try_it("--plan")


@given(st.text(st.sampled_from("ab:-?!&*<>{}[],'\"|%@ \n\t0.e#~"), max_size=40), st.text(max_size=8))
@cases(300)
def test_texts_that_are_not_yaml(folders: Path, text: str, more: str) -> None:
    Path("merge.yml").write_text(f"method: {text}{more}\nmodels: {text}", encoding="utf-8", errors="replace")
    try_it("--plan")
