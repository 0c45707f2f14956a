"""Where and how a run computes, and how it is tracked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.settings import Name, Settings
from train import settings as train_settings
from train.distributed import contradiction
from train.settings import Precision


class Compute(train_settings.Compute):
    """stage_seconds: seconds of stages, by kind, until some were measured."""

    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    precision: Precision = "fp32"
    keep_last_state: bool = True
    stage_seconds: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

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


class Tracking(Settings):
    wandb: Literal["auto", "online", "offline", "off"]
    project: Name
