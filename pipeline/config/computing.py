"""Where and how a run computes, and how it is tracked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.errors import suggestion
from pipeline.config.fields import Name, Positive, Section
from pipeline.stages.stage import STAGE_TYPES
from train.parallel import contradiction


class Compute(Section):
    device: Literal["cpu", "cuda"]
    threads: Annotated[int, Field(gt=0, le=1024)]
    micro_batch: Positive | None
    strategy: Literal["none", "ddp", "zero2", "zero3", "zero3_offload", "fsdp"]
    processes: Positive
    nodes: Positive
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None
    liger: bool
    keep_last_state: bool
    stage_seconds: dict[str, Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def check_kinds(self) -> Compute:
        for kind in self.stage_seconds:
            if kind not in STAGE_TYPES:
                raise ValueError(f"stage_seconds.{kind}: unknown kind of stage. {suggestion(kind, list(STAGE_TYPES))}")
        return self

    @model_validator(mode="after")
    def strategy_for_many(self) -> Compute:
        if self.strategy == "none" and self.processes * self.nodes > 1:
            raise ValueError(
                "strategy=none: needs one process. Set compute=ddp, zero2, zero3, zero3_offload or fsdp for several."
            )
        if self.strategy in ("ddp", "fsdp") and self.processes * self.nodes == 1:
            raise ValueError(
                f"processes=1: compute.strategy={self.strategy} needs several processes. "
                "Set compute=gpu or compute=cpu for one."
            )
        if self.device == "cpu" and (self.liger or self.attention == "flash_attention_2"):
            key, right = (
                ("liger=true", "liger=false") if self.liger else ("attention=flash_attention_2", "attention=null")
            )
            raise ValueError(f"{key}: needs a GPU. Set compute.{right}, or compute.device=cuda.")
        return self

    @model_validator(mode="after")
    def precision_for_device_and_kernels(self) -> Compute:
        if wrong := contradiction(self.device, self.precision, self.attention):
            raise ValueError(wrong)
        return self


class Tracking(Section):
    wandb: Literal["auto", "online", "offline", "off"]
    project: Name
