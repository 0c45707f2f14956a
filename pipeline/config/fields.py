"""Types that several sections of the config share, and the section itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.units import parse_bytes, parse_tokens

Tokens = Annotated[int, BeforeValidator(parse_tokens)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy takes no more
Folder = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def grid_product(grid: Mapping[Any, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values, the last key fastest; of an empty grid one that says nothing."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class Section(BaseModel):
    """A section of the config: all keys are required, no others are accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
