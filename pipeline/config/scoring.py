"""Merges, and what checkpoints and merges are scored on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from common.errors import suggestion
from common.project import shipped
from common.settings import Positive, Settings, Tokens
from eval.settings import ScoringSettings
from merge.recipe import Recipe
from pipeline import recipes
from pipeline.baselines import BASELINES, NOT_MERGED, PAIR, VARIANT
from pipeline.config.trainings import grid_product
from pipeline.old_names import METHODS, current_method, in_store, recipe_in_store
from pipeline.search import Bounds, SearchSettings, middle


def known_arm(name: str) -> str:
    """Return the name of a checkpoint of results. Raises ValueError."""
    if name not in BASELINES:
        raise ValueError(f"no such checkpoint. {suggestion(name, list(BASELINES))}")
    return name


MERGE_NAME = re.compile(r"[a-z][a-z0-9_]*")  # of methods, and of checkpoints from outside
TAKEN = {*BASELINES, *METHODS, *METHODS.values(), *NOT_MERGED}  # names that no checkpoint from outside may have


def role_of(name: str) -> str:
    """Return the role of a checkpoint in merges, which is a part of keys. `check_parents` checks the name."""
    return in_store(current_method(name))


def plain_name(name: str) -> str:
    """Return a name for a checkpoint that merges name. Raises ValueError."""
    if not MERGE_NAME.fullmatch(name):
        raise ValueError("must be small letters, digits and underscores. Choose another name.")
    return name


def free_name(name: str) -> str:
    """Return a name for a checkpoint from outside. Raises ValueError."""
    if name in TAKEN:
        raise ValueError("slackmerge uses this name. Choose another one.")
    return plain_name(name)


ArmName = Annotated[str, AfterValidator(known_arm)]
Role = Annotated[str, AfterValidator(role_of)]
VariantName = Annotated[str, AfterValidator(plain_name)]
CheckpointName = Annotated[str, AfterValidator(free_name)]
GivenCheckpoint = Annotated[str, Field(min_length=1), AfterValidator(shipped)]


class Method(Settings):
    """One merge in the results: a recipe, and the grid of settings that are tried on the dev split.

    of: the checkpoints that are merged, by the names that they have in the recipe.
    from: what task vectors, or an arc, start from: the base, the SFT model, or a checkpoint from outside.
    control: whether it is there to be compared with, and never named the best merge on dev.
    space: in place of a grid, the least and the largest value of each setting that `merge.search` searches.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    of: Annotated[tuple[Role, ...], Field(min_length=1)] = PAIR
    from_: str = Field("base", alias="from")
    control: bool = False
    recipe: dict[str, Any]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    space: dict[str, Bounds] = Field(default_factory=dict)

    @field_validator("recipe", "grid", "space", mode="before")
    @classmethod
    def by_roles(cls, value: Any) -> Any:
        return recipe_in_store(value)

    @property
    def tries(self) -> list[dict[str, Any]]:
        """Return every setting that the grid spans, each a complete recipe; of a space, its middle."""
        return [{**self.recipe, **settings, **middle(self.space)} for settings in grid_product(self.grid)]

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Return the merged checkpoints, by their names in results."""
        return tuple(map(current_method, self.of))

    @property
    def parents(self) -> tuple[str, ...]:
        """Return what its task vectors start from and what is merged, by their names in recipes."""
        return (self.from_, *self.of)

    @property
    def needs_dev_scores(self) -> bool:
        """Return whether dev decides something: the settings, or whether it is the best merge."""
        return bool(self.grid or self.space) or self.leads

    @property
    def leads(self) -> bool:
        """Return whether it may be named the best merge on dev: one of CT and SFT, and no control."""
        return self.of == PAIR and not self.control

    @model_validator(mode="after")
    def settings_in_bounds(self) -> Method:
        both = sorted(set(self.recipe) & set(self.grid))
        if both:
            raise ValueError(f"grid.{both[0]}: is in the recipe too. Set it in one place.")
        if self.grid and self.space:
            raise ValueError("space: this method has a grid too. Remove it, such as by '~merge.methods.NAME.grid'.")
        if both := sorted(set(self.recipe) & set(self.space)):
            raise ValueError(f"space.{both[0]}: is in the recipe too. Set it in one place.")
        if "merge_then_sft" in self.of:
            raise ValueError(
                "of: merge_then_sft is trained from a merge, so merges cannot use it. Name another checkpoint."
            )
        if len(set(self.of)) < len(self.of):
            raise ValueError(f"of={list(self.of)}: a checkpoint is listed twice. List each once.")
        nowhere = Path("folder")
        for name, bounds in self.space.items():
            for value in bounds:
                setting = {**self.recipe, name: value}
                described = recipes.complete(setting, nowhere, dict.fromkeys(self.of, nowhere), 0)
                Recipe.from_dict(described, where=f"space.{name}={value:g}")
        seen: dict[str, dict[str, Any]] = {}
        for settings in self.tries:
            described = recipes.complete(settings, nowhere, dict.fromkeys(self.of, nowhere), 0)
            same = seen.setdefault(recipes.identity(Recipe.from_dict(described, where="recipe")), settings)
            if same is not settings:
                raise ValueError(f"grid: {settings} and {same} give the same merge. Leave one out.")
        return self


class Choice(Settings):
    """The cells on whose dev scores tries are chosen: their budgets and seeds.

    own: the cell's; all: those of the sweep; first: its first seed. pipeline/sweep.py puts the numbers in their place.
    """

    budgets: Literal["own", "all"] | Annotated[tuple[Tokens, ...], Field(min_length=1)]
    seeds: Literal["own", "all", "first"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Merge(Settings):
    """checkpoints: from outside, by the names that methods call them: folders, or models of the Hub.

    search: how settings of methods with a space are found.
    special_rows: sft, to take the rows of tokens that its chat template writes from the chat model.
    """

    write: bool
    metric: Literal["acc", "bits_per_byte"]
    choice: Choice
    sft_after_merge: str | None
    special_rows: Literal["sft"] | None
    checkpoints: dict[CheckpointName, GivenCheckpoint] = Field(default_factory=dict)
    search: SearchSettings | None = None
    methods: dict[str, Method]

    def trials(self, name: str) -> int:
        """Return how many settings of a method dev scores select from."""
        method = self.methods[name]
        return self.search.trials if self.search and method.space else len(method.tries)

    def trials_by_method(self) -> dict[str, int]:
        """Return the number of trials of each method that is tuned."""
        return {name: self.trials(name) for name, method in self.methods.items() if method.grid or method.space}

    @field_validator("checkpoints", mode="before")
    @classmethod
    def none_given(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def checkpoints_are_merged(self) -> Merge:
        named = {role for method in self.methods.values() for role in method.parents}
        if unused := sorted(self.checkpoints.keys() - named):
            raise ValueError(
                f"checkpoints.{unused[0]}: no method merges it. Name it in merge.methods.NAME.of, or leave it out."
            )
        return self

    @model_validator(mode="after")
    def searches_spaces(self) -> Merge:
        spaces = [name for name, method in self.methods.items() if method.space]
        if spaces and self.search is None:
            raise ValueError(
                f"methods.{spaces[0]}.space: is searched by merge.search, which is null."
                " Set merge.search={sampler: tpe, trials: 30}."
            )
        if self.search and not spaces:
            raise ValueError("search: no method has a space. Set merge.methods.NAME.space, or merge.search=null.")
        if self.search and (self.choice.budgets, self.choice.seeds) != ("own", "own"):
            raise ValueError(
                "search: each run proposes its own trials, so that they have no mean over runs."
                " Set merge.choice={budgets: own, seeds: own}."
            )
        return self

    @model_validator(mode="after")
    def comparable(self) -> Merge:
        for name in self.methods:
            if name in BASELINES:
                raise ValueError(f"methods.{name}: a checkpoint that is not merged has this name. Choose another.")
            if not MERGE_NAME.fullmatch(name):
                raise ValueError(
                    f"methods.{name}: the name must be small letters, digits and underscores. Rename the method."
                )
        if self.sft_after_merge is not None and self.sft_after_merge not in self.methods:
            raise ValueError(
                f"sft_after_merge={self.sft_after_merge}: no such merge."
                f" {suggestion(self.sft_after_merge, list(self.methods))}"
            )
        return self


def check_parents(merge: Mapping[str, Any], variants: Any) -> None:
    """Check that all names in `of` and `from` of methods are checkpoints. Raises ValueError that names the key.

    merge, variants: before they are validated, as recipes that name a checkpoint that is not there are wrong too.
    """
    further, methods = merge.get("checkpoints"), merge.get("methods")
    names = list(further) if isinstance(further, Mapping) else []
    of_variants = [f"ct{VARIANT}{name}" for name in variants] if isinstance(variants, Mapping) else []
    for name, method in methods.items() if isinstance(methods, Mapping) else ():
        given = method if isinstance(method, Mapping) else {}
        of = given.get("of", [])
        parents = {f"of.{number}": role for number, role in enumerate(of if isinstance(of, list) else [])}
        for key, role in {**parents, "from": given.get("from", "base")}.items():
            known = ["base", "sft", *names] if key == "from" else [*BASELINES, *names, *of_variants]
            if isinstance(role, str) and current_method(role) not in known:
                near = suggestion(role, known)
                _, is_variant, variant = role.partition(VARIANT)
                more = f"variants.{variant}" if is_variant else f"merge.checkpoints.{role}"
                more = f" Or set {more}." if near.startswith("Choose") else ""
                raise ValueError(f"merge.methods.{name}.{key}={role}: no such checkpoint. {near}{more}")


class Evaluation(ScoringSettings):
    """What checkpoints and merges are scored on, and how."""

    baselines: list[ArmName]
    families: list[str]
    items: Positive
    tune_limit: Positive | None
    batch_tokens: Tokens
    gpus: Positive = 1
    include_path: str | None
    contamination: bool
    default_settings: bool
    frontier: Literal["all", "largest"] | Annotated[tuple[Tokens, ...], Field(min_length=1)] | None = None
    questions: str | None = None

    @model_validator(mode="after")
    def what_is_asked_is_used(self) -> Evaluation:
        if self.system is not None and self.chat == "none":
            raise ValueError("system: only chat prompts have a system message; set eval.chat=auto, or system to null")
        if self.fewshot is not None and not self.tasks and not self.include_path:
            raise ValueError(
                f"fewshot={self.fewshot}: only tasks of lm-eval have examples, and none is scored; name some in"
                " eval.tasks or eval.include_path, or set fewshot to null"
            )
        return self

    @model_validator(mode="after")
    def families_are_known(self) -> Evaluation:
        from train.data.questions import QUESTIONS

        for family in self.families:
            if family not in QUESTIONS:
                raise ValueError(f"families: no such family, got {family!r}. {suggestion(family, QUESTIONS)}")
            if self.families.count(family) > 1:
                raise ValueError(f"families: {family!r} is listed twice. List each once.")
        return self
