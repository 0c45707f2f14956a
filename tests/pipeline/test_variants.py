"""CT of other languages and texts as parents of merges (variants): composition, plan, checks, and a run in Tamil."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from common.errors import BadInput
from common.files import write_jsonl
from pipeline import sweep, variants
from pipeline.config import Config
from pipeline.cost import estimate
from pipeline.run.run import check_configs
from pipeline.run_plan import RunPlan
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.scoring import speaker
from pipeline.stages.stage import Inputs
from tests import toy_text
from tests.messages import assert_one_line, assert_wording
from tests.pipeline.tiny_pair import make_pair, shifted, tamil

ROOT = Path(__file__).parents[2]
CIPHER = 'variants={cipher: "language=cipher"}'
TWO = "+merge.methods.two={of:[ct@cipher,ct,sft],recipe:{method:task_arithmetic,models.ct@cipher.weight:0.5}}"
GIVEN = "sft.source=models/tiny-base"  # else SFT learns items and replay of the language's corpus
INPUTS = Inputs("m", corpus=("nya",))
BOTH = replace(INPUTS, variants={"cipher": replace(INPUTS, corpus=("cipher",))})


def configs(*overrides: str, multirun: bool = False) -> tuple[Config, ...]:
    return sweep.expand(["experiment=test", "model=tiny", *overrides], multirun=multirun).configs


def planned(*overrides: str, known: Inputs = BOTH) -> Cell:
    return plan_cell(configs(*overrides)[0], known)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("language=tam  corpus=files", ["language=tam", "corpus=files"]),
        ("corpus.path='a b/*.txt' ct.epochs=2", ["corpus.path='a b/*.txt'", "ct.epochs=2"]),
        ('ct.sources={a: {dataset: d, template: "{x} }"}} seed=1',
         ['ct.sources={a: {dataset: d, template: "{x} }"}}', "seed=1"]),
        ("corpus.path=தமிழ்.txt\nct.epochs=2", ["corpus.path=தமிழ்.txt", "ct.epochs=2"]),
    ],
)  # fmt: skip
def test_overrides_are_words_outside_of_brackets(text: str, words: list[str]) -> None:
    assert variants.split(text) == words


def test_a_group_that_a_variant_chooses_begins_with_its_file() -> None:
    cell = ["ct.tokens=2048", "language=mine", "language.code=epo", "corpus=files", "corpus.path=a.txt", "+corpus.x=1"]
    assert variants.relative(cell, "ct.epochs=2") == [*cell, "ct.epochs=2"]
    assert variants.relative(cell, "corpus.path=b.txt") == [*cell, "corpus.path=b.txt"]
    assert variants.relative(cell, "corpus=cipher") == [*cell[:3], "corpus=cipher"]
    assert variants.relative(cell, "language=tam") == [cell[0], "language=tam"]


def test_only_the_ct_of_a_variant_is_planned_and_no_other_key_changes() -> None:
    plain, cell = planned(), planned(CIPHER, TWO)
    assert {stage.key for stage in plain.stages} < {stage.key for stage in cell.stages}
    added = [stage for stage in cell.stages if stage.key not in {other.key for other in plain.stages}]
    assert [str(stage) for stage in added] == [
        "corpus cipher-cipher", "ct_blocks cipher-8192-s0", "ct cipher-4096-s0", "merge nya-two-4096-s0",
        "eval nya-two-4096-s0",
    ]  # fmt: skip
    assert list(cell.merges["two"].parents) == ["model", "ct@cipher", "ct", "sft"]
    assert cell.merges["two"].settings.stated["models.ct@cipher.weight"] == 0.5
    assert cell.budget_of("two") == cell.ct_tokens
    assert [str(stage) for stage in cell.variants["cipher"].stages] == [str(stage) for stage in added[:3]]
    other = planned(CIPHER, TWO, known=replace(BOTH, variants={"cipher": INPUTS}))
    assert (
        other.merges["two"].key != cell.merges["two"].key
        and other.merges["ties_sv_1"].key == plain.merges["ties_sv_1"].key
    )


def test_a_variant_that_is_also_a_cell_is_trained_once() -> None:
    two = TWO.replace("ct,", "ct@chewa,").replace("ct@chewa@", "ct@")
    both = 'variants={cipher: "language=cipher", chewa: "language=nya"}'
    corpora = {"nya": INPUTS, "cipher": replace(INPUTS, corpus=("cipher",))}
    of_variants = {"cipher": corpora["cipher"], "chewa": corpora["nya"]}
    swept = configs("language=nya,cipher", "ct.tokens=2048", both, two, GIVEN, multirun=True)
    cells = [plan_cell(one, replace(corpora[one.language.code], variants=of_variants)) for one in swept]
    nya, cipher = cells
    assert nya.merges["two"].parents["ct@cipher"].key == cipher.checkpoints["ct"].key
    assert nya.merges["two"].key == cipher.merges["two"].key  # one merge, scored in both languages
    assert sum(stage.kind == "ct" for stage in merged(cells)) == 2


def test_a_variant_starts_from_the_base_of_its_cell() -> None:
    cell = plan_cell(sweep.expand(["experiment=test", CIPHER, TWO], multirun=False).configs[0], BOTH)
    own, of_variant = (cell.merges["two"].parents[role].parents["model"] for role in ("ct", "ct@cipher"))
    assert own.kind == "base" and own.key == of_variant.key  # it is trained on the corpus of the cell


def test_variants_follow_the_budget_and_seed_of_their_cell() -> None:
    swept = configs(CIPHER, TWO, "ct.tokens=2048,4096", "seed=0,1", "merge.choice={budgets: all, seeds: first}",
                    "+merge.methods.two.grid={lambda: [0.5, 1.0]}", multirun=True)  # fmt: skip
    for config in swept:
        (cipher,) = config.variant_configs.values()
        assert (cipher.ct.tokens, cipher.seed, cipher.language.code) == (config.ct.tokens, config.seed, "cipher")
    cell = plan_cell(swept[-1], BOTH)  # its settings are selected at both budgets with the first seed
    tunes = [stage for stage in cell.stages if stage.kind == "tune" and "two" in stage.slug]
    assert [str(stage.parents["ct@cipher"]) for stage in tunes] == ["ct cipher-2048-s0", "ct cipher-4096-s0"]


def test_a_variant_of_the_same_language_is_another_text_or_training() -> None:
    cell = planned('variants={twice: "ct.epochs=2"}', TWO.replace("cipher", "twice"), known=INPUTS)
    parents = cell.merges["two"].parents
    assert str(parents["ct@twice"]) == "ct nya-twice-4096-s0" and parents["ct@twice"].key != parents["ct"].key
    with pytest.raises(BadInput) as caught:
        planned(
            'variants={same: "sft.tokens=2048"}',
            TWO.replace("cipher", "same"),
            known=replace(INPUTS, variants={"same": INPUTS}),
        )
    assert_wording("variants: the same CT", caught.value)


def test_costs_of_a_variant_are_by_its_settings(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_jsonl(tmp_path / "d" / "rows.jsonl", [{"text": "some text"}])
    more = f'variants={{more: "ct.sources={{a: {{dataset: {tmp_path}/d, fraction: 0.2, max_bytes: 3MB}}}}"}}'
    cell = planned(more, TWO.replace("cipher", "more"), known=INPUTS)
    rows = estimate.rows([cell], set(), estimate.NoRates(), {})
    assert [row.work.text for row in rows if row.stage.kind == "text_source"] == [3_000_000]


def test_the_ct_of_a_variant_has_learnt_no_instructions(tmp_path: Path) -> None:
    for name in ("model", "ct@tam", "tutor"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    folders = {name: tmp_path / name for name in ("model", "ct@tam", "tutor")}
    assert speaker(folders, "auto") == "tutor" and speaker(folders, "none") == "model"


@pytest.mark.parametrize(
    ("case", "key", "overrides"),
    [
        ("misspelt", "merge.methods.two.of.0=ct@ciphr: ", [CIPHER, TWO.replace("of:[ct@cipher", "of:[ct@ciphr")]),
        ("none given", "merge.methods.two.of.0=ct@cipher: ", [TWO]),
        ("not used", "variants.cipher: ", [CIPHER]),
        ("another baseline", "merge.methods.two.of.0=sft@cipher: ", [CIPHER, TWO.replace("[ct@", "[sft@")]),
        ("misspelt in a recipe", "merge.methods.two.recipe: ", [CIPHER, TWO.replace("models.ct@c", "models.ct@z")]),
        ("unknown key", "variants.cipher: ct.tokns: ", ['variants={cipher: "ct.tokns=3"}', TWO]),
        ("unknown language", "variants.cipher: language=ciper: ", ['variants={cipher: "language=ciper"}', TWO]),
        ("no override", "variants.cipher: ", ['variants={cipher: "language"}', TWO]),
        ("several values", "variants.cipher: ", ['variants={cipher: "ct.epochs=2,3"}', TWO]),
        ("another budget", "variants.cipher: ct.tokens: ", ['variants={cipher: "ct.tokens=1024"}', TWO]),
        ("another seed", "variants.cipher: seed: ", ['variants={cipher: "seed=7"}', TWO]),
        ("another base", "variants.cipher: model: ", ['variants={cipher: "model=test"}', TWO]),
        ("text of the cell", "variants.cipher: language.code=xyz: ", ['variants={cipher: "language.code=xyz"}', TWO]),
        ("no text", "variants.cipher: corpus.path: ", ['variants={cipher: "language=mine"}', TWO]),
        ("a name with a dash", "variants.my-own", ['variants={my-own: "language=cipher"}']),
        ("no text of overrides", "variants.cipher", ["variants={cipher: {language: cipher}}", TWO]),
    ],
)  # fmt: skip
def test_variants_that_cannot_be(case: str, key: str, overrides: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        configs(*overrides)
    assert_one_line(caught.value, key)
    assert_wording(f"variants: {case}", caught.value)


def test_a_cell_without_text_enough_for_a_variant_is_left_out() -> None:
    short = 'variants={cipher: "language=cipher language.max_tokens=3k"}'
    assert [one.ct.tokens for one in configs(short, TWO, "ct.tokens=2048,4096", multirun=True)] == [2048]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a chat model, Tamil text, and two texts of no language."""
    folder = tmp_path_factory.mktemp("made")
    base, _ = make_pair(folder)
    shifted(base, folder / "sft", 5)
    tamil(folder, 60)
    for seed, name in enumerate(("english", "other")):
        (folder / f"{name}.txt").write_text("\n\n".join(toy_text.sentences(seed, 60)))
    return folder


def words(made: Path, out: Path, *more: str) -> list[str]:
    return [
        "experiment=test", "language=mine", "language.code=oth", f"corpus.path={made}/other.txt",
        f"corpus.english_path={made}/english.txt", "corpus.dev=0.2", "corpus.test=0.2", "model=folder",
        f"model.path={made}/base", f"sft.source={made}/sft", "eval.families=[]", "eval.baselines=[base]",
        "eval.limit=4", "ct.tokens=2048", "ct.schedule_tokens=2048", "ct.batch_tokens=512", "ct.block_size=64",
        "merge=none", "ct.learning_rate=1e-2", "merge.metric=bits_per_byte", "merge.write=true", f"store={out}/store",
        f"outputs={out}/out", *more,
    ]  # fmt: skip


def of_tamil(made: Path) -> str:
    text = f"corpus=files corpus.path={made}/tamil.txt corpus.english_path={made}/english.txt language.code=tam"
    return f'variants={{tam: "{text} language.name=Tamil corpus.dev=0.2 corpus.test=0.2"}}'


def test_checks_read_the_text_of_variants(made: Path, tmp_path: Path) -> None:
    two = TWO.replace("cipher", "tam")
    (config,) = sweep.expand(words(made, tmp_path, of_tamil(made), two), multirun=False).configs
    assert not [finding for finding in check_configs([config])[1] if finding.fails]
    more = of_tamil(made).replace("tamil.txt", "nowhere.txt")
    (config,) = sweep.expand(words(made, tmp_path, more, two), multirun=False).configs
    found = [finding.text for finding in check_configs([config])[1] if finding.fails]
    assert_one_line(found[0], "variants.tam: corpus.path: no file matches")
    (config,) = sweep.expand(
        words(made, tmp_path, of_tamil(made), two, "ct.tokens=512k", "ct.schedule_tokens=512k"), multirun=False
    ).configs
    found = [finding.text for finding in check_configs([config])[1] if finding.fails]
    assert any(line.startswith("variants.tam: ct.tokens=512k: the Tamil text has about") for line in found), found


def test_a_run_merges_the_ct_of_a_variant_as_arithmetic_does(made: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "merge" / "two.yaml"
    conf.parent.mkdir(parents=True)
    recipe = {"method": "task_arithmetic", "models.ct@tam.weight": 0.5}
    conf.write_text(yaml.safe_dump(
        {"defaults": ["none"], "methods": {"two": {"of": ["ct@tam", "ct", "sft"], "recipe": recipe, "grid": {}}}}
    ))  # fmt: skip
    overrides = words(made, tmp_path, of_tamil(made), "merge=two")
    command = [sys.executable, "-m", "slackmerge", "run", "--config-dir", f"{tmp_path}/conf", *overrides]
    for times in (1, 2):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        summary = json.loads(run.stdout.splitlines()[-1])
        assert (summary["stages_run"] == 0) == (times == 2)
    store = tmp_path / "store"

    def weights(pattern: str) -> dict[str, torch.Tensor]:
        (folder,) = store.glob(pattern)
        return load_file(folder / "model" / "model.safetensors")

    base, sft = (load_file(made / name / "model.safetensors") for name in ("base", "sft"))
    own, of_variant, found = weights("ct/oth-2048-s0-*"), weights("ct/tam-2048-s0-*"), weights("weights/oth-two-*")
    moved = "model.layers.1.mlp.up_proj.weight"
    assert (own[moved] - base[moved]).norm() > 1e-3 < (of_variant[moved] - own[moved]).norm()
    for name, start in base.items():
        expected = start + (own[name] - start) + 0.5 * (of_variant[name] - start) + (sft[name] - start)
        assert torch.allclose(found[name], expected, atol=1e-6), name
    assert not list(store.glob("items/tam*"))


def test_a_plan_for_checks_has_variants_where_inputs_were_rejected() -> None:
    from pipeline.run_plan import without_stages

    (config,) = configs(CIPHER, TWO)
    plan = RunPlan((without_stages(config),))
    assert plan.cells[0].variants["cipher"].config.language.code == "cipher"
