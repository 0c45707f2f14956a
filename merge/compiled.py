"""Whether the compiled loops of merge/kernels.py can be used here, and their first compilation.

numba is imported when a merge is large enough to gain from it: commands that merge nothing, and small models, never
wait for it. Its machine code is kept in `__pycache__` beside the source or, where that cannot be written, in the user's
cache (NUMBA_CACHE_DIR names another folder); where neither can be, every process compiles.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

OFF = "SLACKMERGE_NO_KERNELS"  # set to anything: merge without compiled loops
LINE = "merge: compiling loops for this processor (half a minute, once)"
_lock = threading.Lock()
_ready: dict[str, ModuleType | None] = {}  # by dtype of the loops


def compiled_kernels(dtypes: Iterable[str], tell: bool) -> ModuleType | None:
    """merge.kernels, compiled for arithmetic in `dtypes` (float32, float64); None where that cannot be had.

    tell: print a line on stderr where they have to be compiled first.
    """
    if os.environ.get(OFF):
        return None
    with _lock:
        for dtype in dtypes:
            if dtype not in _ready:
                _ready[dtype] = _compile(dtype, tell)
        found = [_ready[dtype] for dtype in dtypes]
    return found[0] if found and None not in found else None


def _compile(dtype: str, tell: bool) -> ModuleType | None:
    """Compile ahead, in one thread: others would wait. Any failure means no kernels, since merges work without them."""
    with suppress(Exception):
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # set from the environment
            return None
        from merge import kernels

        with _announced(tell):
            try:
                kernels.warm_up(dtype)
            except Exception:  # of the cache: full, damaged, or of somebody else
                kernels.forget_cache()
                kernels.warm_up(dtype)
        return kernels
    return None


@contextmanager
def _announced(tell: bool) -> Iterator[None]:
    """Print LINE at the first function that is compiled, rather than read from the cache."""
    from numba.core import event

    class Told(event.Listener):
        told = not tell

        def on_start(self, _: event.Event) -> None:
            if not self.told and sys.stderr is not None:
                print(LINE, file=sys.stderr, flush=True)
            self.told = True

        def on_end(self, _: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Told()):
        yield
