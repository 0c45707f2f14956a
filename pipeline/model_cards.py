"""Model cards: of a trained checkpoint, and of an adapted model. Pure.

A card states what a model was made from, by which settings, how to make it again, its scores and its rights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from common import hub
from common.hub import OTHER_LICENCE, common_licence
from common.units import counted

if TYPE_CHECKING:
    from pipeline.stages.stage import Stage

RECIPE = "## How to make it again"  # heading in the card of the merge, before recipe and checksums
SCORES = "## Scores on test"
_SCORES = re.compile(rf"^{SCORES}$.*?(?=^## )", re.MULTILINE | re.DOTALL)
RIGHTS_OF_TEXT = "The text that it was trained on may have rights of its own. Check them before you share the model."


@dataclass(frozen=True)
class Origin:
    """A model of the pair. name: fit to be given away; repo: its id on the hub, if it has one; licence: as stated."""

    name: str
    repo: str | None
    licence: str | None


@dataclass(frozen=True)
class Facts:
    """What a card says.

    language: its code; spoken: its name. choice: as in choice.yml. candidates: how many it was chosen among.
    stages: what it was made by, each with name and settings. stop: the token that was added to those that end a
    generation, if one was. new_tokens: those that its tokenizer has besides the chat model's.
    """

    title: str
    language: str
    spoken: str
    base: Origin
    chat: Origin
    choice: Mapping[str, Any]
    chosen: str
    candidates: int
    dtype: str
    stages: Sequence[Mapping[str, Any]]
    stop: str | None = None
    new_tokens: int = 0


def render_adapted(facts: Facts, of_merge: str) -> str:
    """Markdown with a YAML head as model hubs read it. of_merge: the card of the merge, whose recipe is kept."""
    recipe = of_merge[of_merge.index(RECIPE) :] if RECIPE in of_merge else ""
    return "\n".join([f"---\n{_yaml(head(facts))}---\n", f"# {facts.title}\n", *_body(facts), recipe])


def head(facts: Facts) -> dict[str, Any]:
    """The card's metadata, by the hub's names."""
    pair = (facts.base, facts.chat)
    repos = list(dict.fromkeys(origin.repo for origin in pair if origin.repo))
    licence = common_licence([origin.licence for origin in pair])
    names = {"license_name": _slug([origin.licence or "" for origin in pair])} if licence == OTHER_LICENCE else {}
    return {
        **({"base_model": repos, "base_model_relation": "merge"} if repos else {}),
        "language": [facts.language.partition("_")[0]],
        **({"license": licence, **names} if licence else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "slackmerge", "conversational"],
    }


def _body(facts: Facts) -> list[str]:
    one = facts.base.name == facts.chat.name
    of = f"`{facts.chat.name}`" if one else f"`{facts.chat.name}` and its base `{facts.base.name}`"
    choice = facts.choice
    overruled = f" Its method was asked for (`adapt.write={choice['write']}`)." if "write" in choice else ""
    added = f" `{facts.stop}` was added to the tokens that end an answer." if facts.stop else ""
    of_chat = "Tokenizer, chat template"
    if facts.new_tokens:
        more = f"{counted(facts.new_tokens, 'more token')} for {facts.spoken}"
        of_chat = f"The tokenizer is that of `{facts.chat.name}` with {more}. Chat template"
    pair = [facts.chat] if one else [facts.base, facts.chat]
    licences = ", ".join(f"`{origin.name}`: {origin.licence or 'states none'}" for origin in pair)
    chosen = (
        f"The merge is {facts.chosen}. It was chosen on dev among {facts.candidates} candidates: the best"
        f" {choice['gain']} of those whose {choice['keep']} is at most {choice['tolerance']:g} worse than the chat"
        f" model's.{overruled} The weights were merged in float32 and rounded once to {facts.dtype}.\n"
    )
    return [
        f"A chat model that was adapted to {facts.spoken}: a merge of {of} with continual pre-training (CT).\n",
        chosen,
        f"{of_chat} and generation settings are those of `{facts.chat.name}`.{added}\n",
        f"## Rights\n\nLicences: {licences}. {RIGHTS_OF_TEXT}\n",
        f"## Stages\n\nThese stages made it, the last one last:\n\n```yaml\n{_yaml(list(facts.stages))}```\n",
    ]


def with_scores(card: str, table: str) -> str:
    """The card with a table of scores before its rights, in place of an earlier one."""
    section = f"{SCORES}\n\n{table}\n\n"
    if _SCORES.search(card):
        return _SCORES.sub(lambda _: section, card, count=1)
    before, rights, after = card.partition("## Rights\n")
    return f"{before}{section}{rights}{after}"


def _slug(licences: Sequence[str]) -> str:
    """A name as the hub takes it."""
    return "-and-".join(dict.fromkeys(re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") for licence in licences))


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


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


def render_checkpoint(title: str, stages: Sequence[Stage], versions: Mapping[str, str], settings: Sequence[str]) -> str:
    """Markdown with a YAML head as model hubs read it.

    stages: those that made it, the last one last. versions: of the packages that trained it. settings: of the command
    line that planned the stage.
    """
    stage = stages[-1]
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
