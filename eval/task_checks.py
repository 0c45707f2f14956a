"""Checks of lm-eval tasks that load but cannot be scored, before any model is scored on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import BadInput, line_of

LOWER = "higher_is_better"  # a field of score records, False, of metrics that are better the lower they are
GENERATED = 256  # tokens that lm-eval generates where a task does not say
LENGTH_KEYS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the first that is there counts
PACKAGES = {"rouge_score": "rouge-score", "bert_score": "bert-score", "sklearn": "scikit-learn"}  # by what is imported
log = logging.getLogger(__name__)
CONTEXT_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
LOWER_BY_NAME = frozenset(  # metrics that are better the lower they are, if lm-eval does not know
    {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer", "cer", "mer"}
)


def check_task(name: str, task: Any) -> None:
    """Reject a task that lm-eval would fail on once the model has answered. Raises BadInput.

    With doc_to_choice, the target of a generated answer must be the number of a choice.
    """
    config = task.config
    if task.OUTPUT_TYPE != "generate_until":
        return
    _, document = next(iter(task.doc_iterator()))
    target = task.doc_to_target(document)
    if getattr(config, "doc_to_choice", None) is not None and not isinstance(target, int):
        raise BadInput(
            f"tasks: {name} has doc_to_choice and output_type: generate_until, but its target is no number of a"
            f" choice, got {str(target)[:40]!r}. Remove doc_to_choice, or set output_type: multiple_choice."
        )


def check_metrics(name: str, task: Any) -> None:
    """Reject a task that generates and whose metrics need what is not here. Raises BadInput.

    Metrics are tried on the first document, with its target as the answer: packages are often imported within them.
    """
    if task.OUTPUT_TYPE != "generate_until" or getattr(
        task, "UNSAFE_CODE", False
    ):  # whose metrics run what is answered
        return
    if not callable(task.config.process_results):
        unknown = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
        if unknown:
            raise BadInput(
                f"tasks: {name} has a metric that lm-eval does not have and that cannot be loaded, got {unknown[0]!r}."
                " Take one of lm-eval's (exact_match, chrf, bleu, ter), or compute it in process_results."
            )
    _, document = next(iter(task.doc_iterator()))
    try:
        for metric, item in task.process_results(document, [str(task.doc_to_target(document))]).items():
            aggregate = task.aggregation().get(metric)
            if aggregate is not None:
                aggregate([item, item])
    except ImportError as error:
        raise BadInput(missing_package(name, error)) from None
    except Exception as error:  # of a user's own functions, which may not take one answer to one document
        log.info("%s: its metrics were not tried (%s)", name, line_of(error)[:200])


def missing_package(name: str, error: ImportError) -> str:
    """Return the message for a package that a task imports."""
    package = (error.name or line_of(error)).partition(".")[0]
    return (
        f"tasks: {name} needs the Python package {package}, which is not installed."
        f" Install it (pip install {PACKAGES.get(package, package)}), or leave the task out."
    )


def check_shots(name: str, task: Any) -> None:
    """Reject more examples in a prompt than a task has. Raises BadInput."""
    shots = task.get_config("num_fewshot")
    if not shots:
        return
    _, document = next(iter(task.doc_iterator()))
    try:
        task.fewshot_context(document, num_fewshot=shots)
    except Exception as error:  # of the sampler: an assertion, a ValueError
        known = getattr(getattr(task, "sampler", None), "df", None)
        there = f"has {len(known)} examples to draw from" if known else "has no examples"
        raise BadInput(
            f"eval.fewshot: {name} {there}, got {shots} for each prompt ({line_of(error)[:150]}). Set a smaller number,"
            " or give the task a fewshot_split."
        ) from None


def generated_tokens(task: Any) -> int | None:
    """Return how many tokens a task lets a model generate; None for a task that generates nothing."""
    if task.OUTPUT_TYPE != "generate_until":
        return None
    settings = task.config.generation_kwargs or {}
    return int(next((settings[key] for key in LENGTH_KEYS if settings.get(key) is not None), GENERATED))


def context_length(config: Any) -> int | None:
    """Return how many tokens a model reads, by its config of transformers; None if the config has no limit."""
    text = config.get_text_config()
    lengths = (getattr(text, key, None) or getattr(config, key, None) for key in CONTEXT_KEYS)
    return next((int(length) for length in lengths if length is not None), None)


def check_generation_length(tasks: Mapping[str, Any], context: int | None) -> None:
    """Reject tasks that generate as many tokens as a model reads, or more. Raises BadInput."""
    for name, task in tasks.items():
        length = generated_tokens(task)
        if length is not None and context is not None and length >= context:
            raise BadInput(
                f"tasks: {name} generates up to {length} tokens, but the model reads {context}, prompt included."
                f" Set generation_kwargs: {{max_gen_toks: {max(1, context // 4)}}} in the task, or take another model."
            )


def lower_is_better(task: Any) -> frozenset[str]:
    """Return the metrics of a task that are better the lower they are, such as word error rates."""
    better: Iterable[tuple[str, bool | None]] = (task.higher_is_better() or {}).items()
    return frozenset(metric for metric, higher in better if is_lower_better(metric, higher))


def is_lower_better(metric: str, higher_is_better: object) -> bool:
    """Return whether a metric is better the lower it is, by its task or else by its name.

    lm-eval gives None if neither the task nor its table of metrics has it.
    """
    return not higher_is_better if isinstance(higher_is_better, bool) else metric in LOWER_BY_NAME
