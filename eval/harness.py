"""A checkpoint -> scores and samples, in the record formats of docs/explanation/architecture.md."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.errors import BadInput, line_of
from common.files import publish, write_jsonl
from common.special_tokens import control_tokens, in_words, written_out
from eval.devices import check_device, check_gpus, device_names, even_split, spread
from eval.score_records import Record, in_order, mean_records, task_records
from eval.task_checks import check_room, context_length
from eval.task_set import UNLABELLED, TaskSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = {"cpu": 1024, "elsewhere": 8192}  # on a CPU what fits its caches is fastest, on a GPU what fills it


@dataclass
class Scores:
    """What one checkpoint scored.

    records: lines of scores.jsonl, the tasks in their order and then a mean per language.
    samples: lines of samples.jsonl.
    packed: whether choices were scored in packed rows, as the architecture allows; None where there were none.
    control: how often control tokens are written in what was scored, by their names (common/special_tokens.py).
    """

    records: list[Record]
    samples: list[Record]
    packed: bool | None = None
    control: Mapping[str, int] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """How choices were scored, after `done in 3 s`."""
        ways = {None: "", True: ", choices in packed rows", False: ", choices row by row"}
        return ways[self.packed] + in_words(self.control)


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
) -> Scores:
    """Scores a causal LM in memory on every task of the set, by lm-eval. The model is left in eval mode.

    tasks: what `task_set.prepare` built; it serves any number of models.
    batch_tokens: tokens in one forward pass, padding included (None: 1024 on a CPU, 8192 elsewhere).
    device: where the model is brought to, and left (None: it stays where it is).
    gpus: over how many GPUs the model is spread, for one that does not fit on one; the device is cuda then.
    dtype: that its weights are brought to, and left in, such as bfloat16 (None: as they are).
    trained_length: tokens of the blocks that the model was trained on; a text is read in windows that stay within them
    (None: within what the model can read). Prompts of items are not cut to it.
    The same model and tasks give the same scores, bit for bit, with the same number of threads.
    Raises BadInput for a model that gives NaN or is too short for a choice, and for a tokenizer without BOS and EOS.
    """
    check_lengths(batch_tokens, trained_length)
    check_gpus(device, gpus)
    import lm_eval

    from eval.language_model import PackedLM

    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "given"
        raise BadInput(f"tokenizer: {name} has neither a BOS nor an EOS token, one of which must start every document")
    by_name = tasks.by_name
    check_room(by_name, context_length(model.config))
    if device is not None and gpus == 1:
        model.to(device)  # type: ignore[arg-type]
    if dtype is not None:
        cast(model, dtype)
    if gpus > 1 and not hasattr(model, "hf_device_map"):
        spread(model, device_names(gpus))
    encodings = tasks.encodings.setdefault(fingerprint(tokenizer), {})
    on = "cpu" if model.device.type == "cpu" else "elsewhere"
    lm = PackedLM(model, tokenizer, batch_tokens or BATCH_TOKENS[on], encodings, trained_length)
    result = lm_eval.evaluate(lm, {"tasks": by_name}, limit=tasks.limit, bootstrap_iters=0)
    records: list[Record] = []
    samples: list[Record] = []
    for name, entry in tasks.entries.items():
        logged, unlabelled = result["samples"][name], result["samples"].get(f"{name}{UNLABELLED}", ())
        task_scores, task_samples = task_records(name, entry, logged, unlabelled)
        records += task_scores
        samples += task_samples
    control = written_out(_scored_texts(result["samples"], tasks), _control_names(tokenizer))
    return Scores(records + mean_records(records, samples), samples, lm.packed, control)


def _scored_texts(logged: Mapping[str, Any], tasks: TaskSet) -> Iterator[str]:
    """What a model was given of each document: a prompt with its choices, or a text."""
    for name in tasks.entries:
        for sample in in_order(logged[name]):
            yield from {text for request in sample["arguments"] for text in request if isinstance(text, str)}


def _control_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that a tokenizer finds in a text."""
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
) -> Scores:
    """`evaluate` for a Hugging Face folder. dtype None: float32 on the CPU, elsewhere that of its file.

    Raises BadInput, also for whatever the folder's files lead transformers to.
    """
    check_lengths(batch_tokens, trained_length)
    check_device(device, gpus)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (checkpoint / "config.json").is_file():
        raise BadInput(f"model: {checkpoint} is not a Hugging Face checkpoint folder (no config.json)")
    hub.check_no_adapter(checkpoint, "model")
    dtype = dtype or ("float32" if (device or "cpu") == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        check_room(tasks.by_name, context_length(config))  # before gigabytes are read
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            device_map=_device_map(config, dtype, gpus),
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except BadInput:
        raise
    except Exception as error:  # a stranger's files lead transformers to anything
        said = line_of(error)[:300] or type(error).__name__
        raise BadInput(f"model: {checkpoint} cannot be loaded: {said}") from error
    return evaluate(
        model,
        tokenizer,
        tasks,
        batch_tokens=batch_tokens,
        device=device,
        trained_length=trained_length,
        gpus=gpus,
    )


def _device_map(config: Any, dtype: str, gpus: int) -> dict[str, str] | None:
    """Where the parts of a checkpoint are read to, so that no device ever holds it whole; None: all to the host."""
    if gpus == 1:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=config.dtype if dtype == "auto" else dtype)
    empty.tie_weights()
    return even_split(empty, device_names(gpus))


def check_lengths(batch_tokens: int | None, trained_length: int | None) -> None:
    """Reject numbers of tokens with which nothing can be scored. Raises BadInput."""
    for option, number, least in (("batch_tokens", batch_tokens, 1), ("trained_length", trained_length, 2)):
        if number is not None and number < least:
            raise BadInput(f"{option}: {number} must be {least} or more")


def check_out(out: Path) -> None:
    """Reject a folder that `write` could not create and write; leave none. Raises BadInput."""
    made: list[Path] = []
    try:
        made += [place for place in (out, *out.parents) if not place.exists()]
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise BadInput(f"out: {out}: {error.strerror}; give a folder that can be written") from None
    finally:
        for place in made:
            with suppress(OSError):  # not made, or another has put something there
                place.rmdir()


def cast(model: PreTrainedModel, dtype: str) -> None:
    """Gives a model's weights a dtype, in place, as loading its folder in that dtype would.

    What is not a weight stays as it is: the frequencies of rotary positions are float32 in every model.
    """
    import torch

    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)


def fingerprint(tokenizer: Any) -> Any:
    """What two tokenizers share when they give the same tokens.

    A slow tokenizer only shares with itself: a key that keeps it alive, as its `id` would go to the next one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hashlib.sha256(backend.to_str().encode()).hexdigest() if backend is not None else tokenizer


def write(scores: Scores, out: Path) -> None:
    """Writes `scores.jsonl` and `samples.jsonl`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "samples.jsonl", lambda aside: write_jsonl(aside, scores.samples))
    publish(out / "scores.jsonl", lambda aside: write_jsonl(aside, scores.records))
