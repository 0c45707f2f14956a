"""What ends a command, in one line."""

from __future__ import annotations

import pytest

from common.errors import BadInput, StageFailed, user_errors


def test_a_stage_that_ran_out_of_memory_is_still_the_one_that_is_named() -> None:
    with pytest.raises(StageFailed, match="ct-1 failed"), user_errors():
        raise StageFailed("ct-1 failed: out of memory, tried to allocate 3 GB")
    with pytest.raises(BadInput, match="not enough memory"), user_errors():
        raise RuntimeError("out of memory, tried to allocate 3 GB")
