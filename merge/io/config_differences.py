"""Settings of the parents' configs that differ and that the weights depend on, such as `rope_theta`.

A result has only the leader's config, so users need to know how the other models were trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from merge.io.quantized import method

if TYPE_CHECKING:
    from merge.stream.tensor_plan import Plan

# What changes no answer, or is settled elsewhere: savers' notes, dtypes, training, generation, vocabularies, the tie.
_OTHER = re.compile(
    r"_.*|name_or_path|transformers.*|unsloth.*|architectures|model_type|auto_map|(?:torch_)?dtype|.*use_cache"
    r"|tie_\w+|(?:quantization|compression)_config|\w*vocab_size|n_words|\w+_token_ids?|\w+_token_index"
    r"|attn_impl\w*|output_\w+|return_dict\w*|torchscript|\w*gradient_checkpointing\w*|id2label|label2id|num_labels"
    r"|finetuning_task|problem_type|task_specific_params|pretraining_tp|\w*dropout\w*|\w*_pdrop|\w*drop_path\w*"
    r"|\w*initializer\w*|\w*init_std|\w*_loss\w*|max_length|min_length|do_sample|temperature|top_[kp]|num_beams"
    r"|repetition_penalty|model_max_length|\w+_reentrant|rescale_prenorm_residual|seq_length|summary_\w+"
)
_STACKED = re.compile(r"num_hidden_layers|n_layers?|num_layers|.*layer_types|max_window_layers")  # set by slices
# What older savers leave out where it is this.
_DEFAULTS = {"rope_theta": 10000.0, "rope_scaling": None, "sliding_window": None, "partial_rotary_factor": 1.0}
LONGEST = 60  # characters of a value


def differences(plan: Plan, names: Mapping[str, str]) -> list[str]:
    """Return one line per setting: its value in the result, and in parents with another value, by name."""
    key = plan.leader
    lead = dict(_flat(plan.parents[key].config))
    sliced = bool(plan.recipes[0].slices)
    found: dict[str, dict[str, list[str]]] = {}
    for parent, checkpoint in plan.parents.items():
        own = dict(_flat(checkpoint.config))
        for setting in dict.fromkeys((*lead, *own)):
            last = setting.rpartition(".")[2]
            if _OTHER.fullmatch(last) or (sliced and _STACKED.fullmatch(last)):
                continue
            mine, other = (values.get(setting, _DEFAULTS.get(last, _ABSENT)) for values in (lead, own))
            if mine is not _ABSENT and other is not _ABSENT and mine != other:
                holders = found.setdefault(setting, {}).setdefault(_shown(other), [])
                holders.append(names[str(parent[0])])
    lines = [
        f"{setting}: {_shown(lead.get(setting, _DEFAULTS.get(setting.rpartition('.')[2])))} in the result, as in "
        f"{names[str(key[0])]}; "
        + "; ".join(f"{value} in {', '.join(dict.fromkeys(holders))}" for value, holders in values.items())
        for setting, values in found.items()
    ]
    if plan.left_out:
        counted = f"{len(plan.left_out)} tensors ({plan.left_out[0]}, ...)" if plan.left_out[1:] else plan.left_out[0]
        lines.append(f"{counted}: left out, as not all models have it and transformers does not load it")
    left = [names[str(key[0])]] if method(plan.parents[key].config) else []
    return lines + [f"quantization_config of {name}: left out, as its weights are not quantized" for name in left]


def places(plan: Plan) -> dict[str, str]:
    """Name the parents by their paths."""
    return {str(parent[0]): str(parent[0]) for parent in plan.parents}


_ABSENT = object()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten settings, including those of parts, and give rope settings of older and newer savers the same names."""
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield from _flat(value, f"{prefix}{key}.")
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            yield from ((f"{prefix}{own}", each) for own, each in _rope(value))
        elif not (key == "rope_scaling" and value is None):
            yield f"{prefix}{key}", value


def _rope(value: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    rest = {("rope_type" if key == "type" else key): each for key, each in value.items()}
    found = [(key, rest.pop(key)) for key in ("rope_theta", "partial_rotary_factor") if key in rest]
    if rest.get("rope_type") == "default":
        del rest["rope_type"]
    return [*found, ("rope_scaling", rest or None)]


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
