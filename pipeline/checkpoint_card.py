"""The model card of a trained checkpoint: what it was made from, by which settings, and how to make it again. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from common import hub
from pipeline.stages.stage import Stage, in_order

WHAT = {
    "base": "A language model trained from scratch",
    "ct": "Continual pre-training (CT)",
    "sft": "Supervised fine-tuning (SFT)",
}
OF_THIS_MACHINE = ("store", "outputs", "tracking", "launcher", "compute", "site")  # keys that no result depends on
RIGHTS = (
    "The licences of the model that this one was trained from, of the text and of the instructions apply. "
    "Check them before you use or share it."
)


def render(title: str, stage: Stage, versions: Mapping[str, str], settings: Sequence[str]) -> str:
    """Markdown with a YAML head as model hubs read it.

    versions: of the packages that trained it. settings: of the command line that planned the stage.
    """
    stages = in_order([stage])
    models = {parent.key: parent for each in stages for parent in each.parents.values() if parent.given}
    bases = [model.repo for parent in models.values() if (model := _on_hub(parent)) is not None]
    languages = dict.fromkeys(_languages(stages))
    head = {
        **({"base_model": bases} if bases else {}),
        **({"language": list(languages)} if languages else {}),
        "library_name": "transformers",
        "tags": ["slackmerge", stage.kind],
    }
    recipe = [
        {
            "stage": str(each),
            "settings": _plain(each.key_content),
            "from": {role: _named(parent) for role, parent in each.parents.items()},
        }
        for each in stages
    ]
    command = shlex.join(["slackmerge", "make", stage.kind, stage.slug, *public(settings)])
    return "\n".join(
        [
            f"---\n{_yaml(head)}---\n",
            f"# {title}\n",
            f"{summary(stage)}\n",
            "## How to make it again\n",
            f"    {command}\n",
            f"These stages made it, the last one last:\n\n```yaml\n{_yaml(recipe)}```\n",
            f"## Software\n\n{', '.join(f'{name} {version}' for name, version in versions.items())}\n",
            f"## Rights\n\n{RIGHTS}\n",
        ]
    )


def of_adapter(title: str, base: str) -> str:
    """The card of an adapter that has none of its own."""
    head = {"base_model": base, "library_name": "peft", "tags": ["slackmerge", "lora"]}
    return f"---\n{_yaml(head)}---\n\n# {title}\n\nAn adapter of `{base}`.\n\n## Rights\n\n{RIGHTS}\n"


def summary(stage: Stage) -> str:
    """One sentence about a training: its kind, the model that it starts from, its tokens, LoRA."""
    start = stage.parents.get("model")
    of = f" of `{_named(start)}`" if start is not None else ""
    lora = (
        " It was trained with LoRA; the weights include the adapter." if getattr(stage.settings, "lora", None) else ""
    )
    return f"{WHAT[stage.kind]}{of} on {stage.tokens:,} tokens.{lora}"


def public(settings: Sequence[str]) -> list[str]:
    """The settings of a command line without those of this machine; PATH stands for folders and files."""
    shown = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key.lstrip("+").partition(".")[0] not in OF_THIS_MACHINE:
            local = "/" in value and not value.strip("'\"").startswith(hub.PREFIX)
            shown.append(f"{key}{equals}PATH" if local else setting)
    return shown


def _languages(stages: Sequence[Stage]) -> list[str]:
    codes = (stage.settings.language for stage in stages if stage.kind == "corpus")
    return [code.partition("_")[0] for code in codes if isinstance(code, str)]


def _on_hub(stage: Stage) -> hub.HubModel | None:
    return hub.parse(stage.options.path, stage.slug)


def _named(stage: Stage) -> str:
    """A stage by its name; a given model by its id on the Hub, if it has one."""
    model = _on_hub(stage) if stage.given else None
    return str(model) if model is not None else str(stage)


def _plain(value: Any) -> Any:
    """Mappings and sequences as YAML writes them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
