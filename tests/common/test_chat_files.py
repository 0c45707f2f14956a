"""The tokens that end an answer, as a checkpoint's folder states them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.chat import read_stop_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 1}, [2, 7]),
        ({"eos_token_id": 2}, {}, [2]),
        ({}, {"eos_token_id": 1}, [1]),
        (None, {"eos_token_id": 1}, [1]),
        ({"eos_token_id": None}, {"eos_token_id": 1}, []),
        (None, None, []),
    ],
)
def test_stop_ids(tmp_path: Path, generation: object, config: object, expected: list[int]) -> None:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert read_stop_ids(tmp_path) == expected
