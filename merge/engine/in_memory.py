"""Merges as models in memory, straight from their parents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from merge.engine.outputs import Output
from merge.engine.passes import Workers, run
from merge.engine.plan import Plan, make_plan, out_dtype
from merge.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

AT_ONCE = 2 << 30  # bytes of merged weights held by load_many at a time
Shapes = Mapping[str, tuple[int, ...]]


class ModelSink:
    """Fills tensors, such as a model's parameters and buffers, found by the names that the files use."""

    def __init__(self, targets: dict[str, torch.Tensor]):
        self.targets = {name: tensor.detach().view(-1) for name, tensor in targets.items()}

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        self.targets[output.name][start : start + len(values)] = values


def load(recipe: Recipe, device: str = "cpu", place: str | None = None) -> PreTrainedModel:
    """Return the merged model, in eval mode, in the recipe's out dtype. Raises BadInput.

    device: where the arithmetic runs; place: where the model is kept (None: there too).
    """
    return next(model for _, model in load_many([recipe], device, place=place))


def load_many(
    recipes: Sequence[Recipe], device: str = "cpu", at_once: int | None = None, place: str | None = None
) -> Iterator[tuple[Recipe, PreTrainedModel]]:
    """Yield each recipe with its model, in order; as many are merged in one pass over the parents as fit into `at_once`
    bytes (None: AT_ONCE), at least one.

    device: where the arithmetic runs; place: where the models are kept (None: there too). Only the models of one pass
    are held here: one that the caller releases is freed before the next pass. The recipes share their base (or first
    model); models and settings may differ. Raises BadInput before the first merge.
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
    """Merge the plan's recipes into models on `device`."""
    models = [_skeleton(plan, recipe, device) for recipe in plan.recipes]
    sinks = [_sink(model, plan) for model in models]
    if any(sink is None for sink in sinks):
        del models
        return [_converted(plan, recipe, workers, device) for recipe in plan.recipes]
    run(plan, sinks, workers=workers)
    return models


def _skeleton(plan: Plan, recipe: Recipe, device: str) -> PreTrainedModel:
    """Return a model of the right shape whose weights are not set yet."""
    from transformers.initialization import no_init_weights

    config, dtypes, common = _config(plan, recipe), _dtypes(plan, recipe), _common_dtype(plan, recipe)
    with no_init_weights(), torch.device(device):
        model = _auto_class(config).from_config(config, dtype=common)
    for name, parameter in model.named_parameters():
        if dtypes.get(name, common) != common:
            parameter.data = parameter.data.to(dtypes[name])
    model.tie_weights()
    return _completed(model, plan, recipe)


def _converted(plan: Plan, recipe: Recipe, workers: Workers, device: str) -> PreTrainedModel:
    """Return the model that transformers loads from the merged tensors, if these are not parts of the model.

    No file is written. The weights are held twice while they are converted.
    """
    config, dtypes = _config(plan, recipe), _dtypes(plan, recipe)
    tensors = {output.name: torch.empty(output.shape, dtype=dtypes[output.name]) for output in plan.outputs}
    run(plan.narrowed([recipe]), [ModelSink(tensors)], workers=workers)
    with torch.device("meta"):
        kind = type(_auto_class(config).from_config(config))
    model = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=_common_dtype(plan, recipe))
    return _completed(model.to(device), plan, recipe)


def _completed(model: PreTrainedModel, plan: Plan, recipe: Recipe) -> PreTrainedModel:
    """Return the model in eval mode, with its generation config, name and dtype."""
    from transformers import GenerationConfig

    model.config.dtype = _common_dtype(plan, recipe)
    folder = plan.tokenizer_from.folder
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = model.name_or_path = str(plan.parents[plan.leader].folder)
    return model.eval()


def _config(plan: Plan, recipe: Recipe) -> PretrainedConfig:
    """Return the config that a folder with the merge would have."""
    from transformers import AutoConfig

    from merge.output.writer import out_config

    kind = type(AutoConfig.from_pretrained(plan.parents[plan.leader].folder, trust_remote_code=False))
    config: PretrainedConfig = kind.from_dict(out_config(plan, recipe))
    config.tie_word_embeddings = plan.tied
    return config


def _dtypes(plan: Plan, recipe: Recipe) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor of the result."""
    return {output.name: out_dtype(recipe, plan, output) for output in plan.outputs}


def _common_dtype(plan: Plan, recipe: Recipe) -> torch.dtype:
    """Return the dtype of most tensors of the result."""
    return Counter(out_dtype(recipe, plan, output) for output in plan.outputs if output.floating).most_common(1)[0][0]


def _auto_class(config: PretrainedConfig) -> Any:
    """Return the auto class that loads such a model with its head: of text, or of images and text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    named = str((getattr(config, "architectures", None) or [""])[0])
    sees = type(config) in AutoModelForImageTextToText._model_mapping and not named.endswith("ForCausalLM")
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _sink(model: PreTrainedModel, plan: Plan) -> ModelSink | None:
    """Return a sink that fills `model`; None if the files' tensors are not parts of it."""
    places = find_places(model, {output.name: output.shape for output in plan.outputs})
    return None if places is None else ModelSink(places)


class _NoCopies(TorchFunctionMode):
    """Keep `contiguous`, which conversions call, from copying a part of a tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))


def find_places(model: PreTrainedModel, shapes: Shapes) -> dict[str, torch.Tensor] | None:
    """Find the part of a model's memory, contiguous, for each tensor of files of these shapes, by its name.

    Files may name a tensor otherwise than the model does, and divide what is one tensor in the model, such as the
    experts of a layer. transformers' table of these conversions is applied to the model's tensors without copying them:
    a tensor of the files is then a part of the model's memory, and writing it fills the model.

    None if the files' tensors are not such parts, or do not fill the model: transformers may compute with them as it
    loads them.
    """
    state = model.state_dict(keep_vars=True)
    for named in (state, _as_saved(model, state)):
        if any(name not in named or tuple(named[name].shape) != shape for name, shape in shapes.items()):
            continue
        places = {name: named[name] for name in shapes}
        if all(place.is_contiguous() for place in places.values()) and _spans(places.values()) == _spans(
            state.values()
        ):
            return places
    return None


def _as_saved(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the model's tensors as `save_pretrained` would name and divide them, uncopied; empty if that fails."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        with torch.no_grad(), _NoCopies():
            saved: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(state))
    except Exception:  # of any model's conversions, which may need copies
        return {}
    return saved


def _spans(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """Return the ranges of addresses of contiguous tensors, joined if they touch or overlap."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted({(each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors if each.numel()}):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
