"""LoRA in the plan and in the merges."""

from pathlib import Path

from pipeline import recipes, sweep
from pipeline.execute import Job
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage
from tests.pipeline.toy_stage import toy_stage


def trained(*overrides: str) -> dict[str, Stage]:
    cell = plan_cell(sweep.expand(["experiment=test", *overrides], multirun=False).configs[0], Inputs(corpus=("text",)))
    return {stage.kind: stage for stage in cell.stages if stage.kind in ("base", "ct", "sft")}


def test_lora_makes_other_stages_of_the_same_base() -> None:
    full, small, large = trained(), trained("train=lora"), trained("train=lora", "train.lora.rank=128")
    assert full["base"].key == small["base"].key == large["base"].key
    for kind in ("ct", "sft"):
        assert len({cell[kind].key for cell in (full, small, large)}) == 3
        assert full[kind].settings.lora is None and small[kind].settings.lora.rank == 64


def test_merges_read_the_base_and_the_adapter(tmp_path: Path) -> None:
    roles = {
        role: toy_stage("model" if role == "model" else role, role, options={"path": str(tmp_path / role)})
        for role in ("model", "ct", "sft")
    }
    folders = {role: tmp_path / role for role in roles}
    (tmp_path / "ct" / "adapter").mkdir(parents=True)
    job = Job(toy_stage("merge", "test", {"seed": 0}, roles), tmp_path, tmp_path, folders)
    recipe = recipes.recipe_of(job, {"method": "ties", "density": 0.5, "weight": 1.0}, seed=0)
    ct, sft = (recipe.models[0], recipe.models[1])
    assert (ct.path, ct.adapter) == (tmp_path / "model", tmp_path / "ct" / "adapter")
    assert (sft.path, sft.adapter) == (tmp_path / "sft" / "model", None)
