"""Progress of a merge: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge.stream.output import Output
    from merge.stream.tensor_plan import Plan

    Told = Callable[[Plan, Output], None] | None

LINE_EVERY_S = 10.0
LINE = "{percentage:.0f}%, {n_fmt}B of {total_fmt}B read, {rate_fmt}, about {remaining} left"


class Progress:
    """Bytes read in all passes, with speed and time left, on stderr. As a context it returns the callback for every
    tensor, None if `quiet`. name: that of one merge among several.
    """

    def __init__(self, quiet: bool, passes: int, name: str = ""):
        self.quiet, self.passes, self.name = quiet, passes, f" {name}" if name else ""
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar: Any = None
        self.done = 0
        self.started = self.spoke = time.monotonic()

    def __enter__(self) -> Told:
        return None if self.quiet else self._bar if self.terminal else self._line

    def _total(self, plan: Plan) -> int:
        return self.passes * sum(plan.bytes_of(each) for each in plan.outputs)

    def _bar(self, plan: Plan, output: Output) -> None:
        from tqdm import tqdm

        if self.bar is None:
            tensors = f"{self.name} {len(plan.outputs)} tensors".strip()
            self.bar = tqdm(total=self._total(plan), unit="B", unit_scale=True, desc=tensors, leave=False)
        self.bar.set_postfix_str(output.name.removeprefix("model."), refresh=False)
        self.bar.update(plan.bytes_of(output))

    def _line(self, plan: Plan, output: Output) -> None:
        self.done += plan.bytes_of(output)
        now = time.monotonic()
        if now - self.spoke < LINE_EVERY_S:
            return
        from tqdm import tqdm

        self.spoke = now
        read = {"n": self.done, "total": self._total(plan), "elapsed": now - self.started}
        line = tqdm.format_meter(**read, unit="B", unit_scale=True, bar_format=LINE)
        print(f"merge{self.name}: {line}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
