"""Everything that can go wrong after hours, asked in minutes: before a sweep starts, and alone by `make check`.

Comes in: the configs of a sweep. Goes out: findings, a line each, with what to do about it. All checks are made,
whatever the others find. Nothing is touched but the hub's cache (a tokenizer) and the checksums that a store remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import hub as model_hub
from pipeline.check.chat_data import conversations
from pipeline.check.chat_prompts import chat_prompts
from pipeline.check.finding import Finding, first_of_each_language, given, guarded
from pipeline.check.given_checkpoints import checkpoints, partners
from pipeline.check.resources import disk, tasks
from pipeline.check.stated import stated
from pipeline.check.text import budgets, control, corpora, tokenizer
from pipeline.config import Config, HubCorpus
from pipeline.store import Store

__all__ = ["Finding", "sweep"]


def sweep(configs: Sequence[Config]) -> list[Finding]:
    """What is wrong with a sweep, each thing once, whatever else is wrong."""
    findings: list[Finding] = []
    if any(asks_the_hub(config) for config in configs) and not model_hub.is_online():
        findings.append(
            Finding(
                False,
                "the hub (huggingface.co) cannot be reached from here: "
                "what is not in its cache (HF_HOME) is reported as missing",
            )
        )
    for config in first_of_each_language(configs):
        for check in (checkpoints, corpora, control, tasks, tokenizer, partners, conversations, chat_prompts):
            findings += guarded(check, config)
    findings += guarded(budgets, configs)
    findings += guarded(stated, configs)
    findings += guarded(disk, configs, Store(Path(configs[0].store)))
    return list(dict.fromkeys(findings))


def asks_the_hub(config: Config) -> bool:
    """Whether anything of a cell comes from the hub, as far as its keys say."""
    models = any(path.startswith(model_hub.PREFIX) for path in given(config).values())
    return (
        models
        or isinstance(config.corpus, HubCorpus)
        or bool(config.sft.hub)
        or (bool(config.eval.tasks) and not config.eval.include_path)
    )
