"""The model card of an adapted model: what it was made from, how it was chosen, its scores and its rights. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from common.hub import OTHER_LICENCE, common_licence

RECIPE = "## How to make it again"  # heading in the card of the merge, before recipe and checksums
SCORES = "## Scores on test"
_SCORES = re.compile(rf"^{SCORES}$.*?(?=^## )", re.MULTILINE | re.DOTALL)
RIGHTS = "The text that it was trained on may have rights of its own. Check them before you share the model."


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
    generation, if one was.
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


def render(facts: Facts, of_merge: str) -> str:
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
        f"Tokenizer, chat template and generation settings are those of `{facts.chat.name}`.{added}\n",
        f"## Rights\n\nLicences: {licences}. {RIGHTS}\n",
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
