"""Checks that a sweep can run, in minutes: before it starts, and alone by `slackmerge check`.

Input: the plan of a run. Output: findings, one line each, with what to do about it. All checks are made, whatever the
others find. Nothing is changed but the Hub's cache (a tokenizer) and the checksums that a store remembers.

    data        text and conversations: they exist, fit the tokenizer and the template, and fill the budgets
    models      given checkpoints: they exist, every stage can use them, and they can be merged
    resources   lm-eval's tasks, hypotheses, disk space
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from common import hub as model_hub
from pipeline.check.data import (
    check_budgets,
    check_control,
    check_conversations,
    check_corpora,
    check_new_tokens,
    check_tokenizer,
)
from pipeline.check.finding import Finding, first_of_each_language, guarded
from pipeline.check.models import (
    check_chat_templates,
    check_checkpoints,
    check_further,
    check_pair,
    check_partners,
    check_questions,
)
from pipeline.check.resources import check_disk, check_hypotheses, check_tasks
from pipeline.config import Config, HubCorpus
from pipeline.inputs import given_checkpoints
from pipeline.stages.stage import Stage

if TYPE_CHECKING:
    from pipeline.run_plan import RunPlan

__all__ = ["Finding", "check_plan"]


def check_plan(plan: RunPlan, wanted: Sequence[Stage] | None = None) -> list[Finding]:
    """Return what is wrong with a plan, each problem once. A cell without stages is one whose inputs were rejected.

    wanted: the stages that will be computed; None: all that the store lacks.
    """
    findings: list[Finding] = []
    configs = [each.config for cell in plan.cells for each in (cell, *cell.variants.values())]
    if any(map(needs_hub, configs)) and not model_hub.is_online():
        findings.append(
            Finding(
                False,
                "the Hub (huggingface.co) is unreachable: "
                "models and data that are not in the cache (HF_HOME) are reported as missing.",
            )
        )
    scores = wanted is None or any(stage.type.resource == "score" or stage.kind == "leaks" for stage in wanted)
    for cell in first_of_each_language(plan.cells):
        for check in (
            check_checkpoints,
            check_corpora,
            check_control,
            *([check_tasks] if scores else []),
            check_tokenizer,
            check_new_tokens,
            check_further,
            check_partners,
            check_pair,
            check_conversations,
            *([check_chat_templates] if scores else []),
            check_questions,
        ):
            findings += guarded(check, cell)
        for name, variant in cell.variants.items():
            for check in (check_checkpoints, check_corpora, check_control, check_tokenizer, check_new_tokens):
                of_variant = [found for found in guarded(check, variant) if found not in findings]
                findings += [replace(found, text=f"variants.{name}: {found.text}") for found in of_variant]
    findings += guarded(check_budgets, plan)
    findings += guarded(check_hypotheses, plan)
    findings += guarded(check_disk, plan, wanted)
    return list(dict.fromkeys(findings))


def needs_hub(config: Config) -> bool:
    """Return whether anything of a cell comes from the Hub, as far as its keys say."""
    models = any(path.startswith(model_hub.PREFIX) for path in given_checkpoints(config).values())
    return (
        models
        or isinstance(config.corpus, HubCorpus)
        or bool(config.sft.hub)
        or any(not source.local for source in (config.ct.sources or {}).values())
        or (bool(config.eval.tasks) and not config.eval.include_path)
    )
