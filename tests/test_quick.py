"""Which tests `make test-quick` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import quick

ROOT = Path(__file__).parents[1]


def test_the_nearest_files_run() -> None:
    found = quick.distances(["common/files.py"])
    assert found["tests/common/test_files.py"] == 1
    assert found["tests/merge/test_hub.py"] > 1
    assert "tests/common/test_errors.py" not in quick.distances(["tests/common/test_files.py"])


def test_a_module_that_a_test_starts_as_a_program_is_one_that_it_imports() -> None:
    assert quick.distances(["tests/pipeline/gpu_child.py"])["tests/pipeline/test_gpus.py"] == 1
    assert quick.distances(["tests/pipeline/measure_memory.py"])["tests/pipeline/test_memory.py"] == 1


def test_a_file_that_nothing_imports_has_the_tests_of_its_folder() -> None:
    assert quick.distances(["docs/reference/glossary.md"]).keys() >= {"tests/test_docs.py"}
    assert quick.distances(["LICENSE"]) == {}


def test_slow_tests_and_what_has_no_time_are_left_out() -> None:
    near = {
        f"tests/test_{name}.py": distance for name, distance in (("far", 2), ("near", 1), ("mixed", 1), ("long", 1))
    }
    seconds = {
        "tests/test_far.py": 1.0,
        "tests/test_near.py": 3.0,
        "tests/test_mixed.py": 102.0,
        "tests/test_mixed.py::test_slow[1]": 100.0,
        "tests/test_long.py": quick.BUDGET_S + 1,
    }
    files, slow, others = quick.choose(near, seconds)
    assert files == [*quick.ALWAYS, "tests/test_mixed.py", "tests/test_near.py", "tests/test_far.py"]
    assert slow == ["tests/test_mixed.py::test_slow[1]"] and others == ["tests/test_long.py"]


def test_everything_near_is_run_or_named() -> None:
    near = quick.distances(["common/errors.py"])
    files, _, others = quick.choose(near, quick.durations())
    assert len(near) > 100 and {*files, *others} == {*near, *quick.ALWAYS}


def test_durations_are_kept_by_file_and_by_slow_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "DURATIONS", tmp_path / "durations.json")
    quick.write_durations({"tests/a.py::test_x": 0.5, "tests/a.py::test_y[தமிழ்]": 9.0})
    assert quick.durations() == {"tests/a.py": 9.5, "tests/a.py::test_y[தமிழ்]": 9.0}


def test_files_that_it_names_are_there() -> None:
    listed = [*quick.ALWAYS, *sum(quick.OF_FOLDER.values(), ()), *quick.OF_FOLDER]
    listed += [name.partition("::")[0] for name in quick.durations()]
    assert [name for name in listed if not (ROOT / name).exists()] == []
