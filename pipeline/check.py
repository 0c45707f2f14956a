"""Everything that can go wrong after hours, asked in minutes: before a sweep starts, and alone by `make check`.

Each check looks at one thing and says one line a failure, with what to do about it. All checks are made, whatever the others find.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import hub as model_hub
from common import hub_data as hub
from common.errors import BadInput
from common.units import format_tokens
from pipeline import fertility as tokens
from pipeline import inputs as preflight
from pipeline import recipes
from pipeline.config import Config, HubCorpus, HubSource
from pipeline.cost import estimate
from pipeline.kinds import KINDS
from pipeline.plan import Cell, merged, plan_cell
from pipeline.store import Store

SPARE = 200 * 10**6  # bytes that a run needs beside its stages
SAMPLE = 200  # documents that the tokenizer is tried on


@dataclass(frozen=True)
class Finding:
    """One line. A warning stops nothing."""

    fails: bool
    text: str

    def __str__(self) -> str:
        return self.text if self.fails else f"warning: {self.text}"


def sweep(configs: Sequence[Config]) -> list[Finding]:
    """What is wrong with a sweep, each thing once, whatever else is wrong."""
    found: list[Finding] = []
    if any(asks_the_hub(config) for config in configs) and not model_hub.is_online():
        found.append(
            Finding(
                False,
                "the hub (huggingface.co) cannot be reached from here: what is not in its cache (HF_HOME) is reported as missing",
            )
        )
    for config in first_of_each_language(configs):
        for check in (checkpoints, corpora, tasks, tokenizer, partners):
            found += guarded(check, config)
    found += guarded(budgets, configs)
    found += guarded(disk, configs, Store(Path(configs[0].store)))
    return list(dict.fromkeys(found))


def guarded(check: Callable[..., Iterable[Finding] | None], *arguments: Any) -> list[Finding]:
    """What a check finds; what it raises is a finding too."""
    found: list[Finding] = []
    try:
        found.extend(check(*arguments) or ())
    except BadInput as error:
        found.append(Finding(True, str(error)))
    return found


def first_of_each_language(configs: Sequence[Config]) -> list[Config]:
    return list({config.language.code: config for config in reversed(configs)}.values())[::-1]


def asks_the_hub(config: Config) -> bool:
    """Whether anything of a cell comes from the hub, as far as its keys say."""
    models = any(path.startswith(model_hub.PREFIX) for path in given(config).values())
    return (
        models
        or isinstance(config.corpus, HubCorpus)
        or bool(config.sft.hub)
        or (bool(config.eval.tasks) and not config.eval.include_path)
    )


def given(config: Config) -> dict[str, str]:
    """The checkpoints that a cell takes from outside, by key."""
    paths = {"model.path": config.model.path, "ct.source": config.ct_source, "sft.source": config.sft.source}
    return {key: path for key, path in paths.items() if path is not None}


def checkpoints(config: Config) -> Iterator[Finding]:
    """Given checkpoints are there, and this account may read them."""
    for key, path in given(config).items():
        yield from guarded(reachable, path, key)


@cache
def reachable(path: str, key: str) -> tuple[Finding, ...]:
    model = model_hub.parse(path, key)
    if model is None:
        preflight.model_files(Path(path), key)
    else:
        model_hub.check_access(model, key)
        if not model_hub.COMMIT.fullmatch(model.revision):
            found = model_hub.commit(model, key, network=True)
            return (
                Finding(
                    False, f"{key}={model}: is not pinned; say hub:{model.repo}@{found}, so that it stays what it is"
                ),
            )
    return ()


def corpora(config: Config) -> Iterator[Finding]:
    """Text and instructions are there, readable, and have the columns that are read."""
    wanted: list[tuple[str, HubSource, tuple[str, ...]]] = []
    if isinstance(config.corpus, HubCorpus) and not is_done(config, "corpus"):
        wanted += [
            (f"corpus.{name}", part, (part.column,))
            for name, part in (("text", config.corpus.text), ("english", config.corpus.english))
        ]
    if config.sft.hub and config.sft.source is None and not is_done(config, "sft_blocks"):
        wanted.append(("sft.hub", config.sft.hub, (config.sft.hub.prompt, config.sft.hub.answer)))
    for key, source, columns in wanted:
        yield from guarded(hub.check, hub_source(source), columns, key)
    if not isinstance(config.corpus, HubCorpus):
        preflight.inputs(config, network=False)


def hub_source(section: HubSource) -> hub.Source:
    """A section of the config as what is read."""
    return hub.Source(**section.model_dump(include={"dataset", "subset", "files", "split", "revision"}))


def is_done(config: Config, kind: str) -> bool:
    """Whether the stages of a kind are in the store: what they read is not needed again."""
    store, cell = Store(Path(config.store)), planned(config)
    return cell is not None and all(store.find(stage) for stage in cell.stages if stage.kind == kind)


def planned(config: Config) -> Cell | None:
    """The plan of a cell; None where its inputs are refused, which another check says."""
    try:
        return plan_cell(config, preflight.inputs(config, network=False))
    except BadInput:
        return None


def tasks(config: Config) -> Iterator[Finding]:
    """Every lm-eval task exists and loads, with its data."""
    own = None if config.eval.include_path is None else Path(config.eval.include_path)
    names: list[str | None] = [*config.eval.tasks]
    for name in names or ([None] if own else []):
        yield from guarded(load_task, own, name)


def load_task(own: Path | None, name: str | None) -> None:
    """Loads a task by its name; all of a folder of one's own, where there is no name."""
    from eval import task_set

    task_set.load_tasks(own, () if name is None else (name,))


def tokenizer(config: Config) -> Iterator[Finding]:
    """The tokenizer gives the language's text back, and knows its script."""
    if config.model.path is None:
        return
    found = fertility(config)
    if found is None:
        return
    of = f"model.path={config.model.path}: its tokenizer"
    said = f"{found.bytes_a_token:.2f} bytes of {config.language.name} a token, {found.fallback:.0%} of them parts of characters"
    if found.unknown:
        yield Finding(
            True,
            f"{of} loses {found.unknown:.1%} of the tokens of {config.language.name} as unknown; take a model whose tokenizer has bytes",
        )
    elif found.returned < 1:
        lost = f"{of} does not give {1 - found.returned:.0%} of {SAMPLE} documents of {config.language.name} back as they were"
        yield Finding(False, f"{lost}; look whether it normalises what matters")
    if found.fallback > tokens.MAX_FALLBACK_SHARE:
        yield Finding(False, f"{of} hardly knows the script ({said}): budgets buy little text, and answers are long")


@cache
def _fertility(folder: str, sample: tuple[str, ...]) -> tokens.Fertility:
    return tokens.measure(tokens.load(Path(folder), "model.path"), sample)


def fertility(config: Config) -> tokens.Fertility | None:
    """What the tokenizer makes of a sample of the text; None where either is not at hand, which another check says."""
    folder = tokenizer_folder(config)
    sample = tuple(itertools.islice(texts(config), SAMPLE)) if folder else ()
    return _fertility(str(folder), sample) if sample else None


def tokenizer_folder(config: Config) -> Path | None:
    """The folder with the tokenizer: of a model of the hub only its tokenizer is fetched."""
    folder = model_hub.folder_at_hand(config.model.path)
    model = model_hub.parse(config.model.path or "", "model.path")
    if (folder and (folder / "tokenizer.json").is_file()) or model is None:
        return folder
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, "tokenizer.json", revision=model.revision)).parent
    except Exception:  # whatever a network can raise; `checkpoints` says it
        return None


def texts(config: Config) -> Iterator[str]:
    """Documents of the language, as the corpus stage would read them; none where they cannot be read, which another check says."""
    from train.data.corpus import bible
    from train.data.corpus import text_files as files

    try:
        if isinstance(config.corpus, HubCorpus):
            source, column = hub_source(config.corpus.text), config.corpus.text.column
            stream = hub.open_stream(source, "corpus.text")
            yield from (text for (text,) in hub.rows(stream, (column,), source, "corpus.text") if text.strip())
        elif config.corpus.source == "bible":
            yield from (text for _, text in bible.chichewa())
        elif config.corpus.path:
            yield from files.documents(config.corpus.path, "corpus.path")
    except BadInput:
        return


def partners(config: Config) -> Iterator[Finding]:
    """Base, CT and SFT can be merged: same tensors, same vocabulary. What is trained here is like the base."""
    from merge import Recipe, check

    folders = {key: model_hub.folder_at_hand(path) for key, path in given(config).items()}
    base = folders.get("model.path")
    if base is None or not model_hub.is_whole(base) or not config.merge.methods:
        return
    ct, sft = (folders.get(key, base) or base for key in ("ct.source", "sft.source"))
    settings = next(iter(config.merge.methods.values())).tries[0]
    check(
        Recipe.from_dict(
            recipes.complete(settings, base.absolute(), ct.absolute(), sft.absolute(), config.seed),
            where="merge.methods",
        )
    )
    yield from ()


def budgets(configs: Sequence[Config]) -> Iterator[Finding]:
    """The text of each language fills its largest budget."""
    for config in first_of_each_language(configs):
        if config.ct.source is not None or config.model.path is None:
            continue
        largest = max(other.ct.tokens for other in configs if other.language.code == config.language.code)
        held, found = text_bytes(config), fertility(config)
        if held is None or found is None:
            continue
        own = held * (1 - config.corpus.dev - config.corpus.test) / found.bytes_a_token
        reach = int(own / (1 - config.ct.english_share))
        if reach < largest:
            yield Finding(
                True,
                f"ct.tokens={format_tokens(largest)}: the {config.language.name} text gives about {reach:,} tokens with its English; "
                f"give more text, smaller budgets, or language.most_tokens",
            )


def text_bytes(config: Config) -> int | None:
    """UTF-8 bytes of the language's text; of a data set on the hub as many as are asked for, and None where that is all."""
    corpus = config.corpus
    if isinstance(corpus, HubCorpus):
        return corpus.text_bytes
    return sum(len(text.encode()) for text in texts(config))


def disk(configs: Sequence[Config], store: Store) -> Iterator[Finding]:
    """The store's disk holds what is still to come, at its peak."""
    cells = [cell for config in configs if (cell := planned(config))]
    stages = merged(cells)
    done = {stage.key for stage in stages if store.find(stage)}
    if not any(KINDS[stage.kind].trained for stage in stages if stage.key not in done):
        return
    rows = estimate.rows(cells, done, estimate.Untimed(), {})
    need = (
        SPARE
        + estimate.disk_peak(rows, estimate.given_bytes(cells))
        - sum(row.work.written for row in rows if row.done)
    )
    existing = next(folder for folder in (store.root.absolute(), *store.root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise BadInput(
            f"store={store.root}: {free / 1e9:,.1f} GB free, but this run may need {need / 1e9:,.1f} GB at its peak; free some space or choose another disk"
        )
    yield from ()
