"""Names that were renamed before 0.2: configs, command lines and files with the old ones are read in this release.

Stages keep the old words where these are a part of their keys or of their folders' names, so that stores stay valid.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

METHODS = {  # of results: checkpoints and merges
    "ceiling": "target_sft",
    "base_with_sft": "average_of_base_and_sft",
    "ct_then_sft_with_ct": "average_of_ct_then_sft_and_ct",
    "ties_stated": "ties_fixed",
    "ties_sv_1_stated": "ties_sv_1_fixed",
}
FILES = {"arm": ("base_with_sft", "ct_then_sft_with_ct"), "merge": ("stated",)}  # of conf/, by group
CHOICES = METHODS | {"stated": "fixed"}
KEYS = {  # of the config; each stays in its section
    "language.short": "language.iso639_1",
    "language.most_tokens": "language.max_tokens",
    "compute.first_guess": "compute.stage_seconds",
    "eval.unmerged": "eval.baselines",
    "eval.untuned": "eval.default_settings",
    "eval.excerpt": "eval.max_chars",
    "eval.leaks": "eval.contamination",
    "ct.english_share": "ct.english_fraction",
    "sft.replay_share": "sft.replay_fraction",
    "sft.arm_replay_share": "sft.arm_replay_fraction",
    "model.recipe.aligned_share": "model.recipe.aligned_fraction",
    "model.recipe.repeated_share": "model.recipe.repeated_fraction",
    "merge.then_sft": "merge.sft_after_merge",
}
SITE_KEYS = {"data_here": "run_data_locally", "at_once": "max_parallel", "evaluations_a_job": "evals_per_job"}
FIELDS = {"gold_bits": "answer_bits", "gold_bytes": "answer_bytes"}  # of samples.jsonl
METRICS = {"gold_bits_per_byte": "answer_bits_per_byte"}  # of scores.jsonl
IN_STORE = {new: old for old, new in METHODS.items()}


def current_method(name: str) -> str:
    """Return a method's name of today; of several reports, `report/method`."""
    report, slash, method = name.rpartition("/")
    return f"{report}{slash}{METHODS.get(method, method)}"


def in_store(name: str) -> str:
    """Return a method's name as folders and keys of the store have it."""
    return IN_STORE.get(name, name)


def recipe_in_store(value: Any) -> Any:
    """Return a recipe or a grid, with the checkpoints in it by their names in the store."""
    if isinstance(value, Mapping):
        return {".".join(map(in_store, str(key).split("."))): recipe_in_store(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [recipe_in_store(inner) for inner in value]
    return in_store(value) if isinstance(value, str) else value


def current_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of scores.jsonl or samples.jsonl with the names of today."""
    renamed = {FIELDS.get(key, key): value for key, value in row.items()}
    return renamed | ({"metric": METRICS.get(row["metric"], row["metric"])} if "metric" in row else {})


def overrides(given: Sequence[str]) -> list[str]:
    """Return a command line with the names of today; each old one is named on stderr."""
    return [_override(one) for one in given]


def _override(given: str) -> str:
    key, equals, value = given.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    if old := next((old for old in KEYS if group == old or group.startswith(f"{old}.")), None):
        _say_renamed(old, KEYS[old])
        key = key.replace(old, KEYS[old], 1)
        group = group.replace(old, KEYS[old], 1)
    if group in (*FILES, "eval.baselines", "merge.sft_after_merge"):
        known = FILES.get(group, METHODS)
        value = re.sub(r"\w+", lambda word: _renamed(f"{group}=", word[0]) if word[0] in known else word[0], value)
    elif method := re.match(r"(merge\.methods\.)(\w+)", group):
        key = key.replace(method[0], method[1] + _renamed(method[1], method[2]), 1)
    return f"{key}{equals}{value}"


def file(content: Mapping[str, Any], package: str) -> dict[str, Any]:
    """Return the content of a configuration file with the keys of today; each old one is named on stderr.

    Files are renamed one by one, so that the later of two files wins, whichever names they have. package: the section
    that the file is a part of, such as `eval`; empty for the root.
    """
    found = dict(content)
    for old, new in KEYS.items():
        if not package or old.startswith(f"{package}."):
            sections = old.removeprefix(f"{package}.").split(".")
            renamed = _with_new_key(found, sections, new.rpartition(".")[2])
            if renamed is not found:
                _say_renamed(old, new)
            found = renamed
    return found


def _with_new_key(content: dict[str, Any], old: Sequence[str], new: str) -> dict[str, Any]:
    """Return the content with one key renamed, at its place; the same object if it lacks the old one."""
    first, *rest = old
    if first not in content:
        return content
    if not rest:
        return {
            new if key == first else key: value for key, value in content.items() if key != first or new not in content
        }
    section = content[first]
    renamed = _with_new_key(section, rest, new) if isinstance(section, dict) else section
    return content if renamed is section else {**content, first: renamed}


def config(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed config with the names of today; each old one is named on stderr."""
    found = dict(composed)
    for name, group in found.pop("old_names", {}).items():
        _renamed(f"{group}=", name)
    if isinstance(scoring := found.get("eval"), Mapping) and isinstance(scoring.get("baselines"), list):
        found["eval"] = {**scoring, "baselines": [_renamed("eval.baselines=", name) for name in scoring["baselines"]]}
    if isinstance(merge := found.get("merge"), Mapping) and isinstance(merge.get("methods"), Mapping):
        methods: dict[str, Any] = {}
        for name, method in merge["methods"].items():
            place = _renamed("merge.methods.", name)
            for checkpoint in method.get("of") or () if isinstance(method, Mapping) else ():
                _renamed(f"merge.methods.{place}.of=", checkpoint)  # report only: its role is a part of keys, and stays
            both = isinstance(method, Mapping) and isinstance(methods.get(place), Mapping)
            methods[place] = {**methods[place], **method} if both else method
        start = _renamed("merge.sft_after_merge=", merge.get("sft_after_merge"))
        found["merge"] = {**merge, "methods": methods, "sft_after_merge": start}
    return found


def site(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a site's file with the keys of today; each old one is named on stderr."""
    for old in SITE_KEYS.keys() & content.keys():
        _say_renamed(old, SITE_KEYS[old])
    return {SITE_KEYS.get(key, key): value for key, value in content.items()}


def _say_renamed(old: str, new: str) -> None:
    _say(f"{old}: the name is now {new}. The old one is accepted in this release only.")


def _renamed(where: str, name: Any) -> Any:
    """Return the name of today. Says so once a process, if it is another one."""
    new = CHOICES.get(name, name) if isinstance(name, str) else name
    if new != name:
        _say(f"{where}{name}: the name is now {where}{new}. The old one is accepted in this release only.")
    return new


@cache
def _say(line: str) -> None:
    print(line, file=sys.stderr)
