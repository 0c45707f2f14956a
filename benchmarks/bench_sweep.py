"""`make bench-sweep`: what a large sweep costs before and beside its work. The last line is one JSON object.

A plan of 16 languages x 8 budgets x 5 seeds x 5 methods, 10,000 stages, is composed, planned, keyed and looked up;
then a store that has an entry for each of its stages is opened and searched. CPU seconds count, so that a busy
machine does not.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import run_plan, sweep
from pipeline import store as stores
from pipeline.store import RECORD, Store

ROOT = Path(__file__).parents[1]
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "ties_sv_1")
ENTRIES = 10_000
result: dict[str, Any] = {}


@contextmanager
def timed(name: str) -> Iterator[None]:
    """CPU seconds of what is inside."""
    before = time.process_time()
    yield
    result[f"{name}_s"] = round(time.process_time() - before, 2)
    print(f"{name:10}{result[f'{name}_s']:8.2f} s", flush=True)


def codes(count: int) -> str:
    """So many codes of languages."""
    return ",".join(f"x{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(count))


def overrides(languages: int, store: Path) -> list[str]:
    """The sweep. Its text is one small file: the plan reads its checksum, and nothing else."""
    # a method more or less is a key of a mapping: Hydra removes those that are not wanted
    given = sweep.expand(["experiment=cosine"], multirun=True).configs[0].merge.methods
    unwanted = [f"~merge.methods.{name}" for name in given if name not in METHODS]
    budgets = ",".join(str(10_000 * 2**step) for step in range(8))
    return [
        "experiment=cosine",
        "language=mine",
        f"language.code={codes(languages)}",
        f"corpus.path={ROOT}/examples/mine/text/*.txt",
        f"ct.tokens={budgets}",
        "ct.schedule_tokens=10000000",
        "seed=0,1,2,3,4",
        f"store={store}",
        *unwanted,
    ]


def fill(store: Store, stages: list[Any]) -> None:
    """Entries that are published and hold nothing."""
    for stage in stages:
        write_entry(store.root / stage.kind / f"{stage.slug}-{stage.key}", stage)


def write_entry(folder: Path, stage: Any) -> None:
    """An entry that holds nothing."""
    folder.mkdir(parents=True)
    record = {"kind": stage.kind, "slug": stage.slug, "key": stage.key, "trajectory": stage.trajectory}
    (folder / RECORD).write_text(json.dumps(record | {"settings": stage.key_content, "files": {}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", type=int, default=16)
    languages = parser.parse_args().languages
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "store"
        words = overrides(languages, root)
        with timed("compose"):
            expanded = sweep.expand(words, multirun=True)
        with timed("plan"):
            plan = run_plan.plan(expanded, network=False)
            keys = {stage.key for stage in plan.stages}
        with timed("look_up"):
            missing = plan.missing()
        result.update(cells=len(plan.cells), stages=len(keys), missing=len(missing))
        published = list(plan.stages[:ENTRIES])
        fill(Store(root), published)
        reads: list[Path] = []
        read = stores.read_record
        stores.read_record = lambda folder: (reads.append(folder), read(folder))[1]
        with timed("search"):
            store = Store(root)
            found = sum(store.find(stage) is not None for stage in plan.stages)
        result.update(entries=len(published), found=found, records_read=len(reads))
    total = sum(result[f"{name}_s"] for name in ("compose", "plan", "look_up"))
    result.update(total_s=round(total, 2), rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
