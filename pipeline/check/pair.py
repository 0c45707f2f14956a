"""The pair of an adaptation: base and chat model have the same tokens, and answers end. One line per fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import hub as model_hub
from common import licences
from common.chat_files import stop_ids
from common.errors import BadInput
from common.licences import OTHER, common_to
from common.parsing import read_json
from common.special_tokens import added_special_tokens
from common.units import counted
from pipeline import architecture, inputs
from pipeline.check.finding import Finding
from pipeline.check.given_checkpoints import described_folder
from pipeline.config import Config
from pipeline.stages.adapting import for_its_pair
from train.data.chat.template import TOKENIZER, ChatTemplate, of_tokenizer
from train.settings import ChatSettings

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


def pair(config: Config) -> Iterator[Finding]:
    """Facts of base and chat model. Raises BadInput for a pair that cannot be merged or whose answers have no end."""
    if config.adapt is None or config.model.path is None or config.sft.source is None:
        return
    try:
        known = inputs.inputs(config, network=False)
    except BadInput:  # another check says it
        return
    kept = for_its_pair(config, known).merge.methods
    sides = [_side(path, key) for key, path in (("model.path", config.model.path), ("sft.source", config.sft.source))]
    base, chat = sides
    if base is None or chat is None:  # another check says why
        return
    check_same_tokens(base, chat)
    if base.tied != chat.tied:
        tied, other = (base, chat) if base.tied else (chat, base)
        raise BadInput(
            f"{chat.where}: the head of {tied.where} is its embedding and that of {other.where} is not, so their heads"
            " cannot be merged. Give the base that the chat model was made from."
        )
    template = of_tokenizer(chat.tokenizer, ChatSettings(template=TOKENIZER), f"{chat.where}: its tokenizer")
    left_out = [name for name in config.merge.methods if name not in kept]
    yield Finding(False, f"pair        {in_words(base, chat, template, config, left_out)}", told=True)
    yield Finding(False, f"generation  {generation(chat, template)}", told=True)
    found = [licences.stated(side, network=model_hub.is_online()) for side in (config.model.path, config.sft.source)]
    yield Finding(False, f"licences    {licences_in_words(found)}", told=True)
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
    except Exception:  # whatever transformers raises for files of no known kind; `tokenizer` says it
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


def in_words(base: Side, chat: Side, template: ChatTemplate, config: Config, left_out: Sequence[str]) -> str:
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


def generation(chat: Side, template: ChatTemplate) -> str:
    """Say where the chat model's answers end, and which of its generation settings act on greedy answers."""
    file = chat.folder / GENERATION
    stated: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    names = chat.tokenizer.convert_ids_to_tokens(stop_ids(chat.folder))
    stop = template.stop_token
    ends = ", ".join(map(str, names)) or "none"
    added = "" if stop in names else f" ({stop}, which ends its turns, is added)"
    acting = [name for name, idle in GREEDY.items() if stated.get(name, idle) not in (idle, None)]
    acts = f"; its {', '.join(acting)} also act{'s' * (len(acting) == 1)} on greedy decoding" if acting else ""
    of = "of the chat model" if file.is_file() else f"the chat model has no {GENERATION}; by its config.json"
    return f"{of}: eos {ends}{added}{acts}"


def licences_in_words(found: Sequence[str | None]) -> str:
    """The licences of base and chat model, and what the card of the result says."""
    both = common_to(found)
    listed = ", ".join(licence or "not stated" for licence in found)
    card = {None: "the card names what is stated", OTHER: "they differ: the card says other and names both"}
    return f"{listed}; {card.get(both, 'the card names both')}; your text's is yours to check"
