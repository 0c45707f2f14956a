"""The work of one stage: tokens through the model, FLOPs, bytes that it publishes, and scratch bytes.

Tokens of trainings and blocks are exact. Those of scoring are unknown before the items exist; the assumed sizes are
constants here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import Config, ModelShape
from pipeline.cost import flops
from pipeline.cost.generation import generated_tokens
from pipeline.cost.memory import width
from pipeline.cost.model_shape import trained_parameters
from pipeline.cost.scoring_memory import base_width
from pipeline.page_questions import COUNT as QUESTIONS
from pipeline.stages.stage import Stage

# An item of our families with its choices: the mean of all five, measured on the default experiment.
ITEM_TOKENS = {"own": 90, "en": 43}
# A task of lm-eval (assumed): a passage, its question and four choices in a script that falls into bytes.
TASK_ITEMS, TASK_TOKENS = 1000, 1500
TEXTS = {"bible": 95, "cipher": 95}  # held-out documents of a corpus, where their number is known
MANY_TEXTS = 1000  # and where it is not (assumed)
BYTES_A_TOKEN = {"own": 1.64, "en": 3.5}  # of text; measured on the default experiment
# A generated token takes as long as so many that are read (assumed): weights pass once for a token of each row.
GENERATING = 10
COMPRESSED = 3  # how much smaller text is on the disk, with zstd
SMALL = 10**6  # bytes: records, recipes, scores


@dataclass(frozen=True)
class Work:
    """tokens: through the model.

    flops: of these. written: bytes on the disk in the end; scratch: bytes beside them while it is made. text: bytes of
    text that are read, uncompressed.
    """

    tokens: float = 0
    flops: float = 0
    written: float = SMALL
    scratch: float = 0
    tries: int = 0
    text: float = 0


def stage_work(stage: Stage, config: Config, shape: ModelShape, resumed: int = 0, last: bool = True) -> Work:
    """Return the work of a stage of a cell.

    A CT stage continues from `resumed` tokens of its trajectory; `last`: no larger budget continues from it.
    """
    settings, kind = stage.settings, stage.kind
    if stage.type.resource == "train":
        trained = stage.tokens - resumed
        model, state = checkpoint_bytes(shape, config), state_bytes(shape, config)
        # pipeline/stages/trajectory.py: the states of other budgets are dropped
        kept = state if stage.trajectory and last and config.compute.keep_last_state else 0
        # the last two checkpoints, the state that is dropped later, the one that is continued from
        beside = (2 if kept else 3) + (resumed > 0)
        return Work(
            trained,
            trained * flops.training(shape, settings.block_size, getattr(settings, "lora", None) is not None),
            model + kept + SMALL,
            beside * state,
        )
    if kind == "answers":
        questions = QUESTIONS if settings.questions is None else len(settings.questions)
        tokens = questions * (ITEM_TOKENS["own"] + settings.tokens)
        return Work(tokens, tokens * flops.forward(shape, settings.tokens / 2))
    if stage.type.resource == "score":
        tries = len(settings.tries) if kind == "tune" else 1
        tokens, lengths = scored_tokens(stage, config)
        return Work(
            tries * tokens, tries * tokens * flops.forward(shape, lengths / 2), tries=tries if kind == "tune" else 0
        )
    if kind == "adapted":
        return Work(written=(4 if settings.dtype == "float32" else 2) * shape.parameters)
    if kind == "weights":
        return Work(written=base_width(config) * shape.parameters)
    if kind == "ct_blocks":
        packed = config.ct.schedule_tokens  # of all the text an estimate
        width_of_all = packed * token_bytes(shape)
        return Work(packed, 0, width_of_all, width_of_all)
    if kind in ("sft_blocks", "mixed_blocks"):
        return Work(settings.tokens, 0, settings.tokens * (token_bytes(shape) + 4 + 2), 0)
    if kind in ("corpus", "instructions"):
        size = corpus_bytes(config) if kind == "corpus" else instruction_bytes(config)
        return Work(written=size / COMPRESSED, text=size)
    if kind == "leaks":
        return Work(text=corpus_bytes(config) + instruction_bytes(config))
    return Work()


def token_bytes(shape: ModelShape) -> int:
    """Return bytes of a token in a block."""
    return 2 if shape.vocabulary <= 2**16 else 4


def checkpoint_bytes(shape: ModelShape, config: Config) -> int:
    """Return a trained model on the disk: its weights in 32 bits, and LoRA's additions beside them."""
    return 4 * shape.parameters + (4 * trained_parameters(config) if config.train.lora else 0)


def state_bytes(shape: ModelShape, config: Config) -> int:
    """Count the bytes of a training state: weights and two moments of Adam in 32 bits; DeepSpeed adds two copies of
    the model.
    """
    copies = 2 * width(config.compute.precision) * shape.parameters if config.compute.strategy.startswith("zero") else 0
    return 12 * trained_parameters(config) + copies


def corpus_bytes(config: Config) -> float:
    """Return the text of both languages."""
    corpus = config.corpus
    if corpus.source == "hub":
        return (corpus.text_bytes or 0) + (corpus.english_bytes or 0)
    return 20 * SMALL  # a Bible in two languages; files of one's own are read where they are, and are seldom more


def instruction_bytes(config: Config) -> float:
    """Return the text of instructions from the Hub; of all of them (`bytes: null`) no less than the training reads."""
    hub = config.sft.hub
    return (hub.bytes or config.sft.tokens * BYTES_A_TOKEN["en"]) if hub else 0


def scored_tokens(stage: Stage, config: Config) -> tuple[float, float]:
    """Return (tokens that one checkpoint reads, their mean distance to the end of their text) of a scoring stage."""
    tuning = stage.kind == "tune"
    limit = config.eval.tune_limit if tuning else config.eval.limit
    items = min(limit or config.eval.items, config.eval.items) * len(config.eval.families)
    texts = min(limit or MANY_TEXTS, TEXTS.get(config.corpus.source, MANY_TEXTS))
    excerpt = config.eval.excerpt or 4000
    text = {language: texts * excerpt / size for language, size in BYTES_A_TOKEN.items()}
    if tuning:
        return (
            (text["own"], excerpt / 2)
            if config.merge.metric == "bits_per_byte"
            else (items * ITEM_TOKENS["own"], ITEM_TOKENS["own"])
        )
    documents, shots = min(limit or TASK_ITEMS, TASK_ITEMS), config.eval.fewshot
    examples = shots.values() if isinstance(shots, Mapping) else [shots or 0] * len(config.eval.tasks)
    asked = (len(config.eval.tasks) + sum(examples)) * documents * TASK_TOKENS
    generated = documents * generated_tokens(config) * GENERATING
    prompts = items * sum(ITEM_TOKENS.values()) + asked + generated
    ways = 2 if config.eval.chat == "both" else 1  # plain and by the template
    return ways * prompts + sum(text.values()), TASK_TOKENS if asked else ITEM_TOKENS["own"]
