"""`make bench-page`: how soon the report page is read, in a real Chromium: its sentence, its first chart, all of it.

    python benchmarks/bench_page.py [report.html] [--rounds 5] [--slower 1,4]

`slower`: Chromium's own throttle of the processor; 4 is what its developers take for a phone. Medians over rounds, each
in the same browser with an empty page between; milliseconds since the page was asked for. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.pipeline.report.browser import Browser, chromium

TIMES = """({
  sentence: performance.getEntriesByName('first-contentful-paint')[0].startTime,
  first_chart: performance.getEntriesByType('mark').find(mark => mark.name.startsWith('chart ')).startTime,
  curves: performance.getEntriesByName('chart curves')[0].startTime,
  all: performance.getEntriesByName('drawn')[0].startTime,
})"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=ROOT / "docs/evidence/report.html")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slower", default="1,4")
    options = parser.parse_args()
    if chromium() is None:
        parser.error("no chromium; make chromium installs Debian's")
    measured = {}
    with Browser() as browser:
        for slower in map(int, options.slower.split(",")):
            browser.send("Emulation.setCPUThrottlingRate", rate=slower)
            rounds: list[dict[str, float]] = []
            for _ in range(options.rounds):
                browser.send("Page.navigate", url="about:blank")
                browser.open(options.page)
                if not browser.value("performance.getEntriesByName('drawn').length"):
                    parser.error(f"{options.page}: older code drew it; draw it again with `slackmerge report`")
                rounds.append(browser.value(TIMES))
            measured[f"slower_{slower}"] = {
                name: round(statistics.median(each[name] for each in rounds)) for name in rounds[0]
            }
    print(json.dumps({"bytes": options.page.stat().st_size, "rounds": options.rounds, **measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
