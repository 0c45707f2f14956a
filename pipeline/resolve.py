"""Settings that only the text or the machine decides: CT on all of the text, and LoRA where memory asks for it.

A config that states its numbers comes back as it is, and nothing is read.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache

from common.errors import BadInput
from pipeline.config import Config
from pipeline.config.cell import why_not_trained
from pipeline.cost.estimate import BYTES_A_TOKEN
from pipeline.cost.hardware import USABLE

GIB = 2**30


def resolved(config: Config) -> Config:
    """Fill in the tokens that all of the text gives, about, and whether LoRA is used. Raises BadInput."""
    if config.ct.whole_text:
        tokens = expected_tokens(config)
        ct = config.ct.model_copy(update={"tokens": tokens, "schedule_tokens": tokens})
        config = config.model_copy(update={"ct": ct})
    if (above := config.train.lora_above) is not None:
        config = config if needs_lora(config) else in_full(config)
        config = config.model_copy(update={"train": config.train.model_copy(update={"lora_above": None})})
        if wrong := why_not_trained(config):
            reason = f"train.lora_above={above}: training all weights needs more memory, so LoRA is used. "
            raise BadInput(f"{reason}{wrong}" if config.train.lora else wrong)
    return config.with_variants({name: resolved(variant) for name, variant in config.variant_configs.items()})


def in_full(config: Config) -> Config:
    """Return the config without LoRA, and so without a frozen base."""
    train = config.train.model_copy(update={"lora": None, "base_dtype": "float32"})
    return config.model_copy(update={"train": train})


def expected_tokens(config: Config) -> int:
    """Tokens of CT on all of the text, about: whole optimizer steps, at least one. For plans; blocks know the number.

    Raises BadInput where the size of the text is not known before it is fetched.
    """
    from pipeline.check import data

    size, known = data.text_bytes(config), data.bytes_a_token(config)
    if size is None:
        raise BadInput("ct.tokens=null: the size of this text is not known. Set corpus.text_bytes or ct.tokens.")
    tokens = size * config.ct.epochs / (known or BYTES_A_TOKEN["own"]) / config.ct.language_fraction
    return max(1, int(tokens) // config.ct.batch_tokens) * config.ct.batch_tokens


def needs_lora(config: Config) -> bool:
    """Whether training all weights is planned to fill more of the device than `train.lora_above`."""
    from pipeline.cost import memory

    planned = memory.memory_of_trainings(in_full(config))
    if config.sft.source is not None:
        del planned["sft"]
    stated = config.train.lora_above
    room = USABLE * device_memory(config.compute.device) if stated == "auto" else float(stated or 0) * GIB
    return max(held.total for held in planned.values()) > room


@cache
def device_memory(device: str) -> int:
    """Bytes of the smallest GPU of this machine; on a CPU, of main memory. Raises BadInput where there is no GPU."""
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return min(int(line) for line in said.split()) * 2**20
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise BadInput(
            "train.lora_above=auto: no GPU of this machine answers nvidia-smi. Set train.lora_above to the GiB that a"
            " training may fill, or train=full or train=lora."
        ) from None
