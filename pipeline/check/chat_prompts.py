"""The chat templates that checkpoints are scored by: they render what will be asked, and generation stops where they
end an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common import hub as model_hub
from common.chat import read_stop_ids
from pipeline.check.finding import Finding, given
from pipeline.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "Zq2ழAx"  # a text that no template would change
ASKED = [{"role": "user", "content": "Zq1ழUx"}, {"role": "assistant", "content": ANSWER}]


def chat_prompts(config: Config) -> Iterator[Finding]:
    """Check that templates of given checkpoints take what will be asked, and that their models stop after an answer.

    Raises BadInput for a template that fails.
    """
    if config.eval.chat == "none":
        return
    for key, path in given(config).items():
        folder = model_hub.local_folder(path)
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            yield from of_checkpoint(config, folder, f"{key}={path}")


def of_checkpoint(config: Config, folder: Path, where: str) -> Iterator[Finding]:
    """Yield what is found of one checkpoint. Raises BadInput."""
    from transformers import AutoTokenizer

    from eval.chat_prompts import rendered, template_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever files that are missing or of no known kind lead to; another check reports it
        return
    if template_of(tokenizer) is None:
        yield Finding(False, f"chat        {where}: plain prompts (no chat template)", told=True)
        return
    system = [] if config.eval.system is None else [{"role": "system", "content": config.eval.system}]
    rendered(tokenizer, [*system, *ASKED, ASKED[0]], config.chat.date)
    stops = stop_tokens(folder, tokenizer)
    yield Finding(False, f"chat        {where}: by its template; generation stops at {', '.join(stops)}", told=True)
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
    from eval.chat_prompts import rendered

    after = rendered(tokenizer, [*ASKED, ASKED[0]], day).partition(ANSWER)[2]
    added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, added)), after) if added else None
    return found[0] if found else None
