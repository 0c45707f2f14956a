"""Checks of given checkpoints: they exist, this account may read them, every stage can use them, and they can be
merged; chat templates render what will be asked, and answers end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub as model_hub
from common.chat import read_stop_ids
from common.errors import BadInput
from common.hub import OTHER_LICENCE, common_licence
from common.special_tokens import added_special_tokens
from common.units import counted
from common.validation import read_json
from eval.prompting import render_chat
from eval.task_checks import context_length
from pipeline import architecture, inputs, recipes
from pipeline.baselines import PAIR
from pipeline.check.finding import Finding, guarded
from pipeline.config import Config, Method
from pipeline.cost.shape import base_shape, from_config_json
from pipeline.inputs import given_checkpoints
from pipeline.page_questions import KEY, read_questions
from pipeline.stages.adapting import of_chat_model
from pipeline.stages.scoring import prompt
from train.data.chat_template import TOKENIZER, ChatTemplate, template_of
from train.settings import ChatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.stages.cell import Cell


def check_checkpoints(cell: Cell) -> Iterator[Finding]:
    """Check that given checkpoints are there, that this account may read them, and that every stage can use them."""
    for key, path in given_checkpoints(cell.config).items():
        found = guarded(check_reachable, path, key)
        yield from found
        folder = described_folder(path, fetch=not any(finding.fails for finding in found))
        if folder:
            yield from guarded(check_fit, folder, key, path, cell)


def described_folder(path: str, fetch: bool) -> Path | None:
    """Return the folder with a checkpoint's config.json and tokenizer, which are fetched from the Hub if `fetch`."""
    folder, model = model_hub.local_folder(path), model_hub.parse(path, "model.path")
    if folder and (folder / "config.json").is_file():
        return folder
    if model is None or not fetch:
        return None
    from huggingface_hub import hf_hub_download

    try:
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            file = hf_hub_download(model.repo, name, revision=model.revision)
        return Path(file).parent
    except Exception:  # whatever a network can raise, and files that a model has not; other checks report both
        return None


def check_fit(folder: Path, key: str, path: str, cell: Cell) -> Iterator[Finding]:
    """Check that every stage can work with the architecture, tokenizer and length of a checkpoint.

    Raises BadInput.
    """
    config, where = cell.config, f"{key}={path}"
    described = architecture.sizes(architecture.config_of(folder, where))
    reads, stated = described["max_position_embeddings"], described["vocab_size"]
    for name, size in (("ct.block_size", config.ct.block_size), ("sft.block_size", config.sft.block_size)):
        if isinstance(reads, int) and size > reads:
            raise BadInput(f"{name}={size}: must be at most {reads}, max_position_embeddings of {where}.")
    for file in folder.glob("*.safetensors"):
        if not file.is_file():
            raise BadInput(f"{where}: {file.name} must be a file or a link to one. Save the model there again.")
        if (rows := embedding_rows(file)) is not None and isinstance(stated, int) and rows != stated:
            raise BadInput(
                f"{where}: {file.name} embeds {rows} tokens, but vocab_size in config.json is {stated}. "
                "Save the model again."
            )
    # assumed of a cell whose inputs were rejected
    if not cell.stages or any(stage.kind == "sft" for stage in cell.stages):
        architecture.check_packing(folder, where)
    architecture.check_attention(folder, where, config.compute.attention)
    if config.train.lora and key in ("model.path", "ct.source"):  # nothing is trained from the others
        architecture.check_lora(folder, where, config.train.lora)
    if key == "model.path":  # blocks are made with its tokenizer
        architecture.check_end(folder, where)
    if warning := architecture.beyond_embedding(folder, where):
        yield Finding(False, warning)


def embedding_rows(file: Path) -> int | None:
    """Return rows of the embedding of tokens, where a safetensors file holds it under one of its usual names."""
    from safetensors import SafetensorError, safe_open

    from merge.checkpoints.tensor_names import is_embedding

    try:
        with safe_open(file, "np") as tensors:
            names = [name for name in list(tensors.keys()) if is_embedding(name)]
            return int(tensors.get_slice(names[0]).get_shape()[0]) if names else None
    except SafetensorError:  # `check_partners` reports what is wrong with the file
        return None


@cache
def check_reachable(path: str, key: str) -> tuple[Finding, ...]:
    """Reject what cannot be read; warns of a model of the Hub that may change."""
    model = model_hub.parse(path, key)
    if model is None:
        inputs.model_files(Path(path), key)
    else:
        model_hub.check_access(model, key)
        if not model_hub.COMMIT.fullmatch(model.revision):
            pinned = f"hub:{model.repo}@{model_hub.commit(model, key, network=True)}"
            return (
                Finding(
                    False,
                    f"{key}={model}: its revision is not pinned. Set {pinned}, so that the same model is used later.",
                ),
            )
    return ()


def check_partners(cell: Cell) -> Iterator[Finding]:
    """Check that base, CT and SFT have the same tensors and vocabulary. What is trained here is like the base."""
    config = cell.config
    from merge import Recipe, check

    folders = {key: model_hub.local_folder(path) for key, path in given_checkpoints(config).items()}
    base, chat = folders.get("model.path"), folders.get("sft.source")
    if base is None or not model_hub.is_complete(base) or not config.merge.methods:
        return

    def folder_of(role: str) -> Path:
        key = f"{FURTHER}{role}" if role in config.merge.checkpoints else f"{role}.source"
        return (folders.get(key) or base).absolute()

    methods = list(config.merge.methods.values())
    plain = [method for method in methods if not further_of(config, method)]
    checked = [next((method for method in plain if method.of == PAIR), plain[0])] if plain else []
    if not list(check_further(cell)):  # else it has reported why they cannot be merged
        checked += {method.parents: method for method in methods if further_of(config, method)}.values()
    for method in checked:
        whole = of_chat_model(config, method) if chat else {}
        whole.pop("special_rows", None)  # `check_pair` checks the template
        merged = {role: folder_of(role) for role in method.of}
        recipe = recipes.complete({**method.tries[0], **whole}, folder_of(method.from_), merged, config.seed)
        try:
            check(Recipe.from_dict(recipe, where="merge.methods"))
        except BadInput as error:
            of_further = "".join(f"{FURTHER}{name}: " for name in sorted(further_of(config, method))[:1])
            raise BadInput(f"{of_further}{error}") from None
    yield from ()


FURTHER = "merge.checkpoints."  # begins the keys of checkpoints that are merged besides base, CT and SFT
SIZES = ("layers", "hidden", "heads", "kv_heads", "feed_forward", "experts")  # in config.json, besides the vocabulary


def further_of(config: Config, method: Method) -> set[str]:
    """Return the names of the further checkpoints that a method merges or starts from."""
    return set(method.parents) & config.merge.checkpoints.keys()


def check_further(cell: Cell) -> Iterator[Finding]:
    """Check that further checkpoints have the sizes and tokens of the base, by config.json and tokenizer alone.

    So models of the Hub are checked before their weights are fetched. Raises BadInput.
    """
    config = cell.config
    base = _side(config.model.path, "model.path") if config.model.path and config.merge.checkpoints else None
    for name, path in config.merge.checkpoints.items():
        side = _side(path, f"{FURTHER}{name}")
        if side is None:  # another check reports it
            continue
        yield from guarded(check_sizes, side, config)
        by_token = [m.recipe.get("tokenizer") for m in config.merge.methods.values() if name in further_of(config, m)]
        if base and not all(by_token):
            yield from guarded(check_equal_tokens, base, side)


def check_sizes(side: Side, config: Config) -> None:
    """Check that a checkpoint has the sizes of the base. Raises BadInput."""
    try:
        base = base_shape(config)
    except BadInput:  # another check reports it
        return
    found = from_config_json(side.folder / "config.json", side.where)
    for size in SIZES:
        if (ours := getattr(base, size)) != (theirs := getattr(found, size)):
            raise BadInput(
                f"{side.where}: its {size.replace('_', ' ')} size must be that of the base, {ours}, got {theirs}."
                " Give a checkpoint that was made from this base."
            )


def check_equal_tokens(base: Side, side: Side) -> None:
    """Check that two models have the same tokens. Raises BadInput."""
    ours, theirs = base.tokenizer.get_vocab(), side.tokenizer.get_vocab()
    if different := {token for token, _ in ours.items() ^ theirs.items()}:
        token = min(different, key=lambda token: (ours.get(token, theirs.get(token)), token))
        raise BadInput(
            f"{side.where}: its tokenizer differs from that of {base.where}, first in {token!r}. Give a checkpoint"
            " that was made from this base, or set tokenizer: union in the recipe, which merges by token."
        )


GENERATION = "generation_config.json"
# What generation_config.json may say that changes greedy answers too, and the value at which it does not.
GREEDY = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
}


@dataclass(frozen=True)
class Side:
    """A model of the pair. where: key and value, which messages begin with."""

    folder: Path
    where: str
    tokenizer: Any

    @property
    def rows(self) -> int | None:
        """Rows of its embedding, as its config states."""
        found = architecture.sizes(architecture.config_of(self.folder, self.where))["vocab_size"]
        return found if isinstance(found, int) else None

    @property
    def tied(self) -> bool:
        return bool(architecture.sizes(architecture.config_of(self.folder, self.where))["tie_word_embeddings"])


def check_pair(cell: Cell) -> Iterator[Finding]:
    """Facts of base and chat model. Raises BadInput for a pair that cannot be merged or whose answers have no end."""
    config = cell.config
    if not cell.stages or config.adapt is None or config.model.path is None or config.sft.source is None:
        return
    sides = [_side(path, key) for key, path in (("model.path", config.model.path), ("sft.source", config.sft.source))]
    base, chat = sides
    if base is None or chat is None:  # another check reports it
        return
    check_same_tokens(base, chat)
    if base.tied != chat.tied:
        tied, other = (base, chat) if base.tied else (chat, base)
        raise BadInput(
            f"{chat.where}: the head of {tied.where} is its embedding and that of {other.where} is not, so their heads"
            " cannot be merged. Give the base that the chat model was made from."
        )
    template = template_of(chat.tokenizer, ChatSettings(template=TOKENIZER), f"{chat.where}: its tokenizer")
    yield Finding(False, f"pair        {pair_in_words(base, chat, template, config, cell.left_out)}", fact=True)
    yield Finding(False, f"generation  {generation_in_words(chat, template)}", fact=True)
    online = model_hub.is_online()
    found = [model_hub.licence_of(side, network=online) for side in (config.model.path, config.sft.source)]
    yield Finding(False, f"licences    {licences_in_words(found)}", fact=True)
    if not config.eval.tasks and not config.eval.include_path:
        text = "eval.tasks is empty: dev rests on families made of your text; nothing judges free answers"
    else:
        text = (
            "eval.tasks: lm-eval's tasks have no dev split here: the first eval.tune_limit items choose the model and"
            " are among those that it is tested on"
        )
    yield Finding(False, text)


def _side(path: str, key: str) -> Side | None:
    from train.data.packing import load_tokenizer

    folder = described_folder(path, fetch=model_hub.is_online())
    if folder is None:
        return None
    try:
        return Side(folder, f"{key}={path}", load_tokenizer(folder))
    except BadInput:
        raise
    except Exception:  # whatever transformers raises for files of no known kind; `check_tokenizer` reports it
        return None


def check_same_tokens(base: Side, chat: Side) -> None:
    """Every token of the base has the same number in the chat model, which may have more. Raises BadInput."""
    ours, theirs = base.tokenizer.get_vocab(), chat.tokenizer.get_vocab()
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            found = "not there" if token not in theirs else f"token {theirs[token]}"
            raise BadInput(
                f"{chat.where}: {token!r} is {found}, but token {number} in {base.where}: the two were not made from"
                " one another. Give the base that the chat model was made from."
            )


def pair_in_words(base: Side, chat: Side, template: ChatTemplate, config: Config, left_out: Sequence[str]) -> str:
    """What the two have in common, and where texts and turns end."""
    more = chat.tokenizer.get_vocab().keys() - base.tokenizer.get_vocab().keys()
    rows = f"{base.rows:,} rows" if base.rows == chat.rows else f"{base.rows:,} rows, {chat.rows:,} in the chat model"
    tokens = f"{counted(len(more), 'token')} more in the chat model" if more else "same tokens"
    heads = "tied" if base.tied else "untied"
    before, _ = added_special_tokens(base.tokenizer)
    begin = "".join(f", texts begin by {token}" for token in base.tokenizer.convert_ids_to_tokens(before))
    end = getattr(config.ct, "document_end", None) or base.tokenizer.eos_token
    same = f"{rows}; heads {heads} in both; {tokens}; document end {end}, turn end {template.stop_token}{begin}"
    if not left_out:
        return same
    return f"one model is both, so nothing that SFT changed can be merged: left out {', '.join(left_out)}; {same}"


def generation_in_words(chat: Side, template: ChatTemplate) -> str:
    """Say where the chat model's answers end, and which of its generation settings act on greedy answers."""
    file = chat.folder / GENERATION
    stated: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    names = chat.tokenizer.convert_ids_to_tokens(read_stop_ids(chat.folder))
    stop = template.stop_token
    ends = ", ".join(map(str, names)) or "none"
    added = "" if stop in names else f" ({stop}, which ends its turns, is added)"
    acting = [name for name, idle in GREEDY.items() if stated.get(name, idle) not in (idle, None)]
    acts = f"; its {', '.join(acting)} also act{'s' * (len(acting) == 1)} on greedy decoding" if acting else ""
    of = "of the chat model" if file.is_file() else f"the chat model has no {GENERATION}; by its config.json"
    return f"{of}: eos {ends}{added}{acts}"


def licences_in_words(found: Sequence[str | None]) -> str:
    """Describe the licences of base and chat model, and that on the card of the result."""
    both = common_licence(found)
    listed = ", ".join(licence or "not stated" for licence in found)
    card = {None: "the card names what is stated", OTHER_LICENCE: "they differ: the card says other and names both"}
    return f"{listed}; {card.get(both, 'the card names both')}; your text's is yours to check"


ANSWER = "Zq2ழAx"  # a text that no template would change
ASKED = [{"role": "user", "content": "Zq1ழUx"}, {"role": "assistant", "content": ANSWER}]


def check_chat_templates(cell: Cell) -> Iterator[Finding]:
    """Check that templates of given checkpoints take what will be asked, and that their models stop after an answer.

    Raises BadInput for a template that fails.
    """
    config = cell.config
    if config.eval.chat == "none":
        return
    for key, path in given_checkpoints(config).items():
        folder = model_hub.local_folder(path)
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            yield from check_template(config, folder, f"{key}={path}")


def check_template(config: Config, folder: Path, where: str) -> Iterator[Finding]:
    """Check the template of one checkpoint. Raises BadInput."""
    from transformers import AutoTokenizer

    from eval.prompting import chat_template_of, render_chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever files that are missing or of no known kind lead to; another check reports it
        return
    if chat_template_of(tokenizer) is None:
        yield Finding(False, f"chat        {where}: plain prompts (no chat template)", fact=True)
        return
    system = [] if config.eval.system is None else [{"role": "system", "content": config.eval.system}]
    render_chat(tokenizer, [*system, *ASKED, ASKED[0]], config.chat.date)
    stops = stop_tokens(folder, tokenizer)
    yield Finding(False, f"chat        {where}: by its template; generation stops at {', '.join(stops)}", fact=True)
    end = turn_end(tokenizer, config.chat.date)
    if end is not None and end not in stops:
        yield Finding(
            False,
            f"{where}: its template ends an answer by {end}, where generation does not stop; add its id to eos_token_id"
            " in its generation_config.json, or answers run on",
        )


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that end a generation of a checkpoint: of its generation config, and the tokenizer's EOS."""
    names = [str(tokenizer.convert_ids_to_tokens(int(number))) for number in read_stop_ids(folder)]
    return list(dict.fromkeys([*names, *([str(tokenizer.eos_token)] if tokenizer.eos_token else [])]))


def turn_end(tokenizer: PreTrainedTokenizerBase, day: str) -> str | None:
    """Return the first special token that the template writes after an answer; None if it writes none."""
    from eval.prompting import render_chat

    after = render_chat(tokenizer, [*ASKED, ASKED[0]], day).partition(ANSWER)[2]
    added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, added)), after) if added else None
    return found[0] if found else None


def check_questions(cell: Cell) -> Iterator[Finding]:
    """Count the questions of eval.questions. Raises BadInput for one that leaves a model no room for an answer."""
    config = cell.config
    if config.adapt is None or config.eval.questions is None:
        return
    from train.data.packing import load_tokenizer

    asked = read_questions(config.eval.questions)
    for key, path in given_checkpoints(config).items():
        folder = described_folder(path, fetch=model_hub.is_online())
        if folder is None:  # another check reports it
            continue
        context = context_length(architecture.config_of(folder, f"{key}={path}"))
        tokenizer = load_tokenizer(folder)
        for number, question in enumerate(asked, start=1):
            messages = prompt(tokenizer, question, config.eval.system)
            text = messages if isinstance(messages, str) else render_chat(tokenizer, messages, config.chat.date)
            length = len(tokenizer.encode(text, add_special_tokens=False))
            if context is not None and length >= context:
                raise BadInput(
                    f"{KEY}={config.eval.questions}: question {number} has {length} tokens, and {key}={path} reads"
                    f" {context} with the answer. Shorten it."
                )
    yield Finding(False, f"questions   {len(asked)}, all of them on the page", fact=True)
