"""An adapted model as a folder that is the chat model in all but its weights: stops, cache, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import hub
from common.chat import read_stop_ids
from common.files import read_jsonl
from common.validation import read_json
from pipeline import adapted_card
from pipeline.adapted_card import Facts, Origin
from pipeline.execute import Job
from pipeline.graph import Stage, in_order
from pipeline.job_settings import AdaptedOptions, AdaptedSettings

GENERATION, CONFIG, CARD = "generation_config.json", "config.json", "README.md"


def write(job: Job, candidate: str, choice: Mapping[str, Any], chosen: str) -> str | None:
    """Writes the folder of a candidate; returns the stop token that had to be added, if one had to.

    Raises BadInput for a chat model whose template says no end of an answer.
    """
    import merge
    from merge import Recipe

    recipe = Recipe.from_yaml(job.folders[candidate] / "merge.yml")
    settings = AdaptedSettings(**job.settings)
    folder = merge.write(recipe.model_copy(update={"out_dtype": settings.dtype}), job.out / "model")
    stop = add_stop(folder)
    use_cache(folder)
    card = folder / CARD
    facts = facts_of(job, candidate, choice, chosen, stop)
    card.write_text(adapted_card.render(facts, card.read_text(encoding="utf-8")), encoding="utf-8")
    return stop


def add_stop(folder: Path) -> str | None:
    """Has generations end where the chat template ends an answer; returns the token, if its number was not among them.

    All else of generation_config.json stays as it is.
    """
    from transformers import AutoTokenizer

    from train.data.chat.template import TOKENIZER, of_tokenizer
    from train.stage_settings import ChatSettings

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    template = of_tokenizer(tokenizer, ChatSettings(TOKENIZER), "sft.source: its tokenizer")
    number = tokenizer.get_vocab()[template.stop_token]
    numbers = read_stop_ids(folder)
    if number in numbers:
        return None
    file = folder / GENERATION
    config = read_json(file) if file.is_file() else {}
    _put(file, {**config, "eos_token_id": [*numbers, number]})
    return template.stop_token


def use_cache(folder: Path) -> None:
    """Sets `use_cache: true`, which trainings turn off, wherever generations look for it."""
    for name in (CONFIG, GENERATION):
        file = folder / name
        if file.is_file() and (name == CONFIG or "use_cache" in read_json(file)):
            _put(file, {**read_json(file), "use_cache": True})


def facts_of(job: Job, candidate: str, choice: Mapping[str, Any], chosen: str, stop: str | None) -> Facts:
    """What the card says."""
    stage, options = job.stage, AdaptedOptions(**job.options)
    chat, merged = origin(stage.parents["sft"]), stage.parents[candidate]
    return Facts(
        title=f"{chat.name.rpartition('/')[2]}, adapted to {options.spoken}",
        language=stage.parents["choose"].settings["language"],
        spoken=options.spoken,
        base=origin(stage.parents["model"]),
        chat=chat,
        choice=choice,
        chosen=chosen,
        candidates=len(read_jsonl(job.folders["choose"] / "candidates.jsonl")),
        dtype=job.settings["dtype"],
        stages=[described(each) for each in in_order([merged])],
        stop=stop,
    )


def origin(stage: Stage) -> Origin:
    """A given model as a card names it: by its id on the hub, else by the name of its folder."""
    path = str(stage.options["path"])
    model = hub.parse(path, "path")
    repo = model.repo if model else None
    return Origin(repo or Path(path).absolute().name, repo, hub.licence_of(path))


def described(stage: Stage) -> dict[str, Any]:
    """A stage with what decides its result, which names no path."""
    named = {role: origin(parent).name if parent.given else str(parent) for role, parent in stage.parents.items()}
    return {"stage": str(stage), "settings": json.loads(json.dumps(dict(stage.settings))), "from": named}


def _put(file: Path, config: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
