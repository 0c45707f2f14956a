"""Merges as models in memory, straight from their parents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from merge.recipe import Recipe
from merge.stream.dtypes import out_dtype
from merge.stream.engine import run
from merge.stream.output import Output
from merge.stream.tensor_plan import Plan, make_plan
from merge.stream.threads import Workers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

AT_ONCE = 2 << 30  # bytes of merged weights held by load_many at a time


class ModelSink:
    """Fills a model's parameters and buffers, found by the names that the files use."""

    def __init__(self, targets: dict[str, torch.Tensor]):
        self.targets = {name: tensor.detach().view(-1) for name, tensor in targets.items()}

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        self.targets[output.name][start : start + len(values)] = values


def load(recipe: Recipe, device: str = "cpu", place: str | None = None) -> PreTrainedModel:
    """The merged model, in eval mode, in the recipe's out dtype. Raises BadInput.

    device: where the arithmetic runs; place: where the model lies (None: there too).
    """
    return next(model for _, model in load_many([recipe], device, place=place))


def load_many(
    recipes: Sequence[Recipe], device: str = "cpu", at_once: int | None = None, place: str | None = None
) -> Iterator[tuple[Recipe, PreTrainedModel]]:
    """Yield each recipe with its model, in order; as many are merged in one pass over the parents as fit into `at_once`
    bytes (None: AT_ONCE), at least one.

    device: where the arithmetic runs; place: where the models lie (None: there too). A model that the caller lets go of
    is gone before the next ones are made: those of `at_once` are held here, no others. The recipes share their base (or
    first model); models and settings may differ. Raises BadInput before the first merge.
    """
    workers = Workers(device)
    plan = make_plan(recipes)
    try:
        size = max(1, sum(output.numel * out_dtype(recipes[0], plan, output).itemsize for output in plan.outputs))
        count = max(1, (AT_ONCE if at_once is None else at_once) // size)
        for first in range(0, len(recipes), count):
            some = recipes[first : first + count]
            models = _merge(plan.narrowed(some), workers, place or workers.device)
            for recipe in some:
                yield recipe, models.pop(0)
    finally:
        plan.close()


def _merge(plan: Plan, workers: Workers, device: str) -> list[PreTrainedModel]:
    """device: where the models lie."""
    arranged = plan.alignment is not None and plan.alignment.rows is not None
    if arranged or any(recipe.slices for recipe in plan.recipes):  # of which no parent has the config
        return [_through_files(plan, recipe, device) for recipe in plan.recipes]
    models = [_skeleton(plan, recipe, device) for recipe in plan.recipes]
    sinks = [_sink(model, plan) for model in models]
    if any(sink is None for sink in sinks):
        return [_through_files(plan, recipe, device) for recipe in plan.recipes]
    run(plan, sinks, workers=workers)
    return models


def _skeleton(plan: Plan, recipe: Recipe, device: str) -> PreTrainedModel:
    """A model of the right shape whose weights are not set yet."""
    from transformers import AutoConfig, GenerationConfig
    from transformers.initialization import no_init_weights

    folder = plan.parents[plan.leader].folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.tie_word_embeddings = plan.tied
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if hasattr(part, "quantization_config"):  # of weights that are not quantized: see check_not_quantized
            del part.quantization_config
    dtypes = {output.name: out_dtype(recipe, plan, output) for output in plan.outputs if output.floating}
    common = Counter(dtypes.values()).most_common(1)[0][0]
    with no_init_weights(), torch.device(device):
        model = _auto_class(config).from_config(config, dtype=common)
    for name, parameter in model.named_parameters():
        if dtypes.get(name, common) != common:
            parameter.data = parameter.data.to(dtypes[name])
    model.tie_weights()
    model.config.dtype = common
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = model.name_or_path = str(folder)
    return model.eval()


def _auto_class(config: PretrainedConfig) -> Any:
    """What loads such a model with its head: of text, or of images and text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    named = str((getattr(config, "architectures", None) or [""])[0])
    sees = type(config) in AutoModelForImageTextToText._model_mapping and not named.endswith("ForCausalLM")
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _sink(model: PreTrainedModel, plan: Plan) -> ModelSink | None:
    """A sink that fills `model`.

    None where its names are not those of the files (transformers converts some architectures).
    """
    state = model.state_dict(keep_vars=True)
    names = {output.name for output in plan.outputs}
    filled = {state[name].data_ptr() for name in names if name in state}
    shapes_fit = all(
        output.name in state and tuple(state[output.name].shape) == output.shape for output in plan.outputs
    )
    if not shapes_fit or any(tensor.data_ptr() not in filled for name, tensor in state.items() if name not in names):
        return None
    return ModelSink({name: state[name] for name in names})


def _through_files(plan: Plan, recipe: Recipe, device: str) -> PreTrainedModel:
    from transformers import AutoConfig

    from merge.io.writer import write

    with TemporaryDirectory() as folder:
        write(recipe, f"{folder}/merged")
        path = f"{folder}/merged"
        kind = _auto_class(AutoConfig.from_pretrained(path, trust_remote_code=False))
        model: PreTrainedModel = kind.from_pretrained(path, dtype="auto", trust_remote_code=False)
        return model.to(device).eval()  # type: ignore[arg-type]
