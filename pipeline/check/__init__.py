"""Everything that can go wrong after hours, asked in minutes: before a sweep starts, and alone by `make check`.

Comes in: the configs of a sweep. Goes out: findings, a line each, with what to do about it. All checks are made,
whatever the others find. Nothing is touched but the Hub's cache (a tokenizer) and the checksums that a store remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import hub as model_hub
from pipeline.check.data import (
    check_budgets,
    check_control,
    check_conversations,
    check_corpora,
    check_new_tokens,
    check_tokenizer,
)
from pipeline.check.finding import Finding, first_of_each_language, given, guarded
from pipeline.check.models import (
    check_chat_templates,
    check_checkpoints,
    check_pair,
    check_partners,
    check_questions,
)
from pipeline.check.resources import check_disk, check_hypotheses, check_tasks
from pipeline.config import Config, HubCorpus
from pipeline.stages.stage import Stage
from pipeline.store import Store

__all__ = ["Finding", "sweep"]


def sweep(configs: Sequence[Config], missing: Sequence[Stage] | None = None) -> list[Finding]:
    """Return what is wrong with a sweep, each problem once; all checks run, whatever the others find.

    missing: the stages that will be computed; None: all that the store lacks.
    """
    findings: list[Finding] = []
    if any(asks_the_hub(config) for config in configs) and not model_hub.is_online():
        findings.append(
            Finding(
                False,
                "the Hub (huggingface.co) is unreachable: "
                "models and data that are not in the cache (HF_HOME) are reported as missing.",
            )
        )
    asks = missing is None or any(stage.type.resource == "score" or stage.kind == "leaks" for stage in missing)
    for config in first_of_each_language(configs):
        for check in (
            check_checkpoints,
            check_corpora,
            check_control,
            *([check_tasks] if asks else []),
            check_tokenizer,
            check_new_tokens,
            check_partners,
            check_pair,
            check_conversations,
            *([check_chat_templates] if asks else []),
            check_questions,
        ):
            findings += guarded(check, config)
    findings += guarded(check_budgets, configs)
    findings += guarded(check_hypotheses, configs)
    findings += guarded(check_disk, configs, Store(Path(configs[0].store)), missing)
    return list(dict.fromkeys(findings))


def asks_the_hub(config: Config) -> bool:
    """Return whether anything of a cell comes from the Hub, as far as its keys say."""
    models = any(path.startswith(model_hub.PREFIX) for path in given(config).values())
    return (
        models
        or isinstance(config.corpus, HubCorpus)
        or bool(config.sft.hub)
        or (bool(config.eval.tasks) and not config.eval.include_path)
    )
