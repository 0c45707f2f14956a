"""How every loop is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile a function into its callers: what is constant there, such as `kind`, then is so in its loops."""
    return numba.njit(error_model="numpy", forceinline=True, **options)  # type: ignore[no-any-return]
