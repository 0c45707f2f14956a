"""What libraries would print among our lines is turned off before they are imported. Imports nothing heavy."""

from __future__ import annotations

import os

SILENT = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


def silence() -> None:
    """Turn off progress bars and advice of libraries; child processes inherit it.

    Libraries read these variables when they are imported, so call this first. What a user set stays.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
