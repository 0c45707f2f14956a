"""`python -m merge merge.yml OUT_DIR`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from merge.errors import BadInput
from merge.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m merge", description="Merge checkpoints of one architecture.")
    parser.add_argument("recipe", help="YAML file: our schema or a mergekit config")
    parser.add_argument("out_dir", help="new folder for the merged checkpoint")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe.from_yaml(options.recipe)
        from merge.writer import write

        print(write(recipe, options.out_dir))
    except BadInput as error:
        print(f"merge: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
