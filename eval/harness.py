"""Score a checkpoint on a set of tasks: records and samples in the formats of docs/explanation/architecture.md."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import write_atomic, write_jsonl
from common.special_tokens import control_tokens, count_control_names, format_control_counts
from eval import loading
from eval.loading import check_gpus, device_names, spread_over_devices
from eval.prompting import PLAIN_PROMPTS, Prompting, PromptMode, check_template_tokens, generation_mode, is_text_task
from eval.records import Record, first_filter, mean_records, task_records
from eval.task_checks import check_generation_length, context_length
from eval.task_set import UNLABELLED, TaskSet, item_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Scores:
    """The scores of one checkpoint.

    records: lines of scores.jsonl, the tasks in their order and then a mean per language.
    samples: lines of samples.jsonl.
    packed: whether choices were scored in packed rows, as the architecture allows; None without choices.
    prompts: a description of how tasks were prompted; empty for plain prompts.
    control: counts of control tokens written in the scored texts, by their names (common/special_tokens.py).
    """

    records: list[Record]
    samples: list[Record]
    packed: bool | None = None
    control: Mapping[str, int] = field(default_factory=dict)
    prompts: str = ""

    @property
    def note(self) -> str:
        """Return how tasks were prompted and choices scored, for the line `done in 3 s`."""
        ways = {None: "", True: ", choices in packed rows", False: ", choices row by row"}
        return f"{', ' if self.prompts else ''}{self.prompts}{ways[self.packed]}{format_control_counts(self.control)}"


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: TaskSet,
    *,
    batch_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trained_length: int | None = None,
    gpus: int = 1,
    prompting: Prompting = PLAIN_PROMPTS,
) -> Scores:
    """Score a causal LM in memory on every task of the set, by lm-eval. The model is left in eval mode.

    tasks: built by `task_set.prepare`, for any number of models.
    batch_tokens: tokens in one forward pass, padding included (None: 1024 on a CPU, 8192 elsewhere).
    device: the device that the model is moved to, and stays on (None: it is not moved).
    gpus: the number of GPUs that the model is spread over, if it does not fit on one; the device is then cuda.
    dtype: the dtype that its weights are cast to, and keep, such as bfloat16 (None: as they are).
    trained_length: tokens of the blocks that the model was trained on; a text is read in windows within them (None:
    within the model's context). Prompts of items are not cut to it.
    prompting: plain or by the chat template, and how answers are generated.
    The same model and tasks give the same scores, bit for bit, with the same number of threads.
    Raises BadInput for a model that gives NaN or is too short for a choice, for a tokenizer without BOS and EOS, and
    for a chat template that fails.
    """
    check_lengths(batch_tokens, trained_length)
    check_gpus(device, gpus)
    import lm_eval

    from eval.batches import default_batch_tokens
    from eval.language_model import PackedLM

    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "given"
        raise BadInput(f"tokenizer: {name} has neither a BOS nor an EOS token, one of which must start every document")
    by_name = tasks.by_name
    check_generation_length(by_name, context_length(model.config))
    if prompting.chat != "none":
        embedding: Any = model.get_input_embeddings()
        check_template_tokens(tokenizer, len(embedding.weight))
    if device is not None and gpus == 1:
        model.to(device)  # type: ignore[arg-type]
    if dtype is not None:
        loading.cast_weights(model, dtype)
    if gpus > 1 and not hasattr(model, "hf_device_map"):
        spread_over_devices(model, device_names(gpus))
    encodings = tasks.encodings.setdefault(tokenizer_fingerprint(tokenizer), {})
    length = batch_tokens or default_batch_tokens(model.device.type)
    lm = PackedLM(model, tokenizer, length, encodings, trained_length, prompting.day)
    scores = Scores([], [], prompts=prompting.describe(tokenizer))
    control: Counter[str] = Counter()
    for mode in prompting.modes(tokenizer):
        selected = {name: task for name, task in by_name.items() if not mode.suffix or not is_text_task(task)}
        if not selected:
            continue
        arguments = mode.lm_eval_arguments(prompting)
        with generation_mode(model, prompting.generation):
            result = lm_eval.evaluate(lm, {"tasks": selected}, tasks.limit, bootstrap_iters=0, **arguments)
        _add_records(scores, tasks, result, mode, prompting)
        control += count_control_names(_scored_texts(result["samples"], tasks, mode), _control_names(tokenizer))
    scores.packed, scores.control = lm.packed, control
    return scores


def _add_records(
    scores: Scores, tasks: TaskSet, result: Mapping[str, Any], mode: PromptMode, prompting: Prompting
) -> None:
    """Add the records and samples of lm-eval's result in one mode."""
    records: list[Record] = []
    samples: list[Record] = []
    for name, entry in tasks.entries.items():
        if name not in result["samples"]:
            continue
        logged, unlabelled = result["samples"][name], result["samples"].get(f"{name}{UNLABELLED}", ())
        of_task, answers = task_records(f"{name}{mode.suffix}", entry, logged, unlabelled, result["results"][name])
        records += [row | ({} if is_text_task(entry.task) else prompting.record_fields(mode)) for row in of_task]
        samples += answers
    means = mean_records(records, samples, mode.suffix)
    scores.records += records + [row | prompting.record_fields(mode) for row in means]
    scores.samples += samples


def _scored_texts(logged: Mapping[str, Any], tasks: TaskSet, mode: PromptMode) -> Iterator[str]:
    """Yield the scored texts of documents: prompts with their choices, or text; chat prompts without their template."""
    for name, entry in tasks.entries.items():
        for sample in first_filter(logged.get(name, ())):
            if mode.chat:
                yield item_text(entry.task, sample["doc"])
                continue
            yield from {text for request in sample["arguments"] for text in request if isinstance(text, str)}


def _control_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of the special tokens that a tokenizer finds in a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return list(control_tokens(json.loads(backend.to_str())).values())
    return [str(token) for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]


def evaluate_folder(
    checkpoint: Path,
    tasks: TaskSet,
    *,
    batch_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trained_length: int | None = None,
    gpus: int = 1,
    prompting: Prompting = PLAIN_PROMPTS,
) -> Scores:
    """`evaluate` for a Hugging Face folder. dtype None: float32 on the CPU, elsewhere that of its file.

    Raises BadInput, also for whatever the folder's files lead transformers to.
    """
    check_lengths(batch_tokens, trained_length)

    def check(config: Any) -> None:
        check_generation_length(tasks.by_name, context_length(config))

    model, tokenizer = loading.load_checkpoint(checkpoint, device=device, dtype=dtype, gpus=gpus, check=check)
    return evaluate(
        model,
        tokenizer,
        tasks,
        batch_tokens=batch_tokens,
        device=device,
        trained_length=trained_length,
        gpus=gpus,
        prompting=prompting,
    )


def check_lengths(batch_tokens: int | None, trained_length: int | None) -> None:
    """Reject numbers of tokens with which nothing can be scored. Raises BadInput."""
    for option, number, least in (("batch_tokens", batch_tokens, 1), ("trained_length", trained_length, 2)):
        if number is not None and number < least:
            raise BadInput(f"{option}: {number} must be {least} or more")


def check_out(out: Path) -> None:
    """Reject a folder that `write_scores` could not create and write; leave none. Raises BadInput."""
    created: list[Path] = []
    try:
        created += [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise BadInput(f"out: {out}: {error.strerror}; give a folder that can be written") from None
    finally:
        for folder in created:
            with suppress(OSError):  # it was not created, or another process has put something there
                folder.rmdir()


def tokenizer_fingerprint(tokenizer: Any) -> Any:
    """Return a key that two tokenizers share if they give the same tokens.

    That of a slow tokenizer is the tokenizer itself: it has to stay alive, as another could reuse its `id`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend is not None else tokenizer


def write_scores(scores: Scores, out: Path) -> None:
    """Write `scores.jsonl` and `samples.jsonl`, each atomically."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "samples.jsonl", lambda staging: write_jsonl(staging, scores.samples))
    write_atomic(out / "scores.jsonl", lambda staging: write_jsonl(staging, scores.records))
