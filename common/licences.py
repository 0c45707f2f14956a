"""The licence that a checkpoint's card states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import hub
from common.errors import BadInput
from common.parsing import parse_yaml

CARD, OTHER = "README.md", "other"


def stated(path: str, network: bool = False) -> str | None:
    """The licence in the YAML head of the card of a folder or of a model of the hub; None where none is to be found.

    network: whether the card may be fetched.
    """
    file = _card(path, network)
    if file is None:
        return None
    head = head_of(file.read_text(encoding="utf-8", errors="replace"))
    name, link = head.get("license"), head.get("license_name")
    found = link if name == OTHER and isinstance(link, str) else name
    return found if isinstance(found, str) and found else None


def head_of(card: str) -> dict[str, Any]:
    """The YAML head of a card; empty where there is none that can be read."""
    begins, _, rest = card.partition("---\n")
    head, ends, _ = rest.partition("\n---")
    if begins.strip() or not ends:
        return {}
    try:
        found = parse_yaml(head)
    except BadInput:
        return {}
    return found if isinstance(found, dict) else {}


def common_to(found: Sequence[str | None]) -> str | None:
    """One licence for what is made of several works: theirs where they have one, `other` where they differ.

    None where one of them states none.
    """
    if None in found:
        return None
    return found[0] if len(set(found)) == 1 else OTHER


def _card(path: str, network: bool) -> Path | None:
    model = hub.parse(path, "path")
    folder = hub.folder_at_hand(path)
    if folder is not None and (folder / CARD).is_file():
        return folder / CARD
    if model is None or not network:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, CARD, revision=model.revision))
    except Exception:  # whatever a network can raise; a model need not have a card
        return None
