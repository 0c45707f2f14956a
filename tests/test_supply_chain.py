"""Nothing that is read may run: weights only, no code that comes with a checkpoint, no pickles but our own.

docs/explanation/security.md says what this is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from common import validation
from pipeline.cost import estimate

ROOT = Path(__file__).parents[1]
FOLDERS = ("common", "train", "merge", "eval", "pipeline", "models", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
OWN_PICKLES = {"pipeline/run_plan.py"}  # the plan that a run leaves for its own workers
FORBIDDEN = {
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "marshal.loads",
    "dill.load",
    "joblib.load",
}
UNPICKLES = {"pickle.load", "pickle.loads", "pandas.read_pickle", "pd.read_pickle"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file by its dotted name, with its place."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def found(wrong: object) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{call.lineno} {name}"
        for path in FILES
        for name, call in calls(path)
        if wrong(path, name, keywords(call))  # type: ignore[operator]
    ]


def keywords(call: ast.Call) -> dict[str, object]:
    """The keyword arguments that are constants."""
    return {word.arg: word.value.value for word in call.keywords if word.arg and isinstance(word.value, ast.Constant)}


def test_torch_loads_weights_only() -> None:
    assert not found(lambda path, name, given: name == "torch.load" and given.get("weights_only") is not True)


def test_every_package_of_the_lock_but_torch_has_hashes() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    bare = [line for line in lines if not line.endswith("\\")]
    assert len(lines) > 100 and [line.partition("==")[0] for line in bare] == ["torch"]


def test_no_code_of_a_checkpoint_is_run() -> None:
    """Where nothing is said, transformers would ask on a terminal: it is said at every call."""
    assert not found(lambda path, name, given: given.get("trust_remote_code") not in (None, False))
    asked = ("AutoModelForCausalLM.from_pretrained", "AutoTokenizer.from_pretrained", "AutoConfig.from_pretrained")
    rooms = ("train/", "merge/", "eval/", "pipeline/")
    silent = found(
        lambda path, name, given: (
            name.endswith(asked)
            and str(path.relative_to(ROOT)).startswith(rooms)
            and given.get("trust_remote_code") is not False
        )
    )
    assert not silent


def test_nothing_is_unpickled_but_our_own_plan() -> None:
    assert not found(lambda path, name, given: name in UNPICKLES and str(path.relative_to(ROOT)) not in OWN_PICKLES)
    assert not found(lambda path, name, given: name.endswith("np.load") and given.get("allow_pickle"))


def test_nothing_is_evaluated() -> None:
    readers = [
        ROOT / "common" / "validation.py",
        ROOT / "pipeline" / "cost" / "estimate.py",
    ]  # with loaders of their own
    assert not found(lambda path, name, given: name in FORBIDDEN and not (path in readers and name == "yaml.load"))
    assert issubclass(validation._NoKeyTwice, yaml.SafeLoader) and issubclass(estimate._Loader, yaml.SafeLoader)


def test_weights_are_written_as_safetensors() -> None:
    assert not found(lambda path, name, given: given.get("safe_serialization") is False)
    states = {
        "train"
    }  # a trainer's state (optimizer, random numbers), which the trainer itself reads with weights_only
    assert not found(lambda path, name, given: name == "torch.save" and path.parts[len(ROOT.parts)] not in states)
