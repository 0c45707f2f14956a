"""What a checkpoint's folder says of conversations: its chat template, and the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path

from common.parsing import read_json


def text_in(folder: Path) -> str | None:
    """Return the chat template in a checkpoint's folder as transformers finds it; None if there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    own = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(own, list):  # several, each with a name
        own = next((each.get("template") for each in own if each.get("name") == "default"), None)
    return own if isinstance(own, str) else None


def stop_ids(folder: Path) -> list[int]:
    """Return the numbers of the tokens that end a generation: of the generation config, else of the config."""
    for name in ("generation_config.json", "config.json"):
        stated = read_json(folder / name) if (folder / name).is_file() else {}
        if "eos_token_id" in stated:
            known = stated["eos_token_id"]
            return [] if known is None else known if isinstance(known, list) else [known]
    return []
