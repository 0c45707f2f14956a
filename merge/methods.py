"""The merging methods: names, sources and settings.

One row per method, and no other list of methods. A method is a way to sparsify task vectors, a way to combine models
(with or without a sign election), and defaults. `register` adds a row. A row may bring its own arithmetic: `consensus`
combines task vectors, `span` gives coefficients. It imports no torch: plans and configs read this table too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from merge import span

# Settings of a recipe's models, with their defaults. mergekit has the same, but requires the weight, and has no random
# signs.
MODEL_DEFAULTS: MappingProxyType[str, Any] = MappingProxyType(
    {"weight": 1.0, "density": 1.0, "gamma": 0.01, "epsilon": 0.15, "random_signs": False, "scale": 1.0}
)
ELECTION_KEYS = (
    "slack", "protect", "slack_form", "slack_scale", "on_slack", "slack_scope", "slack_share", "election",
)  # fmt: skip
COMMON_KEYS = ("compute_dtype", "out_dtype", "tokenizer", "chat_template", "special_rows", "exact")  # of every recipe


@dataclass(frozen=True)
class Combination:
    """A way to make one model of several, computed by a class of merge/engine/tensor_recipe.py.

    recipe_keys, model_keys: settings that it reads. draws: whether it may draw random numbers.
    """

    name: str
    recipe_keys: tuple[str, ...] = ()
    model_keys: tuple[str, ...] = ()
    draws: bool = False


TASK_VECTORS = Combination("task_vectors", ("lambda", "norm", "norm_of", "normalize"), ("random_signs",), draws=True)
AVERAGE = Combination("average", ("normalize",))  # of weights
SPAN = Combination("span")  # a point in the span of the models, by coefficients from their Gram matrix
SLERP = Combination("slerp", ("t",))  # a point on the arc from the base to one model
NEARSWAP = Combination("nearswap", ("t",))  # one model's task vector, cut to a size
PASSTHROUGH = Combination("passthrough", (), ("scale",))  # one model's weights times a number


@dataclass(frozen=True)
class Sparsifier:
    """A way to sparsify task vectors, computed by a class of merge/engine/sparsification.py.

    recipe_keys, model_keys: settings that it reads. seeded: whether it draws random numbers.
    """

    name: str
    model_keys: tuple[str, ...] = ()
    recipe_keys: tuple[str, ...] = ()
    seeded: bool = False


MAGNITUDE = Sparsifier("magnitude", ("density",))  # keeps the largest values
RANDOM = Sparsifier("random", ("density",), seeded=True)  # keeps each value with the same probability
MAGNITUDE_OUTLIERS = Sparsifier("magnitude_outliers", ("density", "gamma"))  # drops the largest and the smallest
MAGPRUNE = Sparsifier("magprune", ("density", "epsilon"), seeded=True)  # keeps larger values with higher probability
VARIANCE = Sparsifier("variance", recipe_keys=("select_topk",))  # keeps parameters in which the models differ most
IMPORTANCE = Sparsifier("importance")  # keeps what moves a row's distribution most


@dataclass(frozen=True)
class MergekitForm:
    """How mergekit writes a method.

    parameters: its parameters of a merge, None for the usual ones. fixed: parameters that we support at mergekit's
    default only. normalize: its name of `normalize`.
    """

    parameters: tuple[str, ...] | None = None
    fixed: tuple[tuple[str, Any], ...] = ()
    normalize: str = "normalize"


@dataclass(frozen=True)
class Method:
    """A row. Methods with the same arithmetic are equal, whatever their names.

    keys: further settings of a recipe. elect: whether signs are elected. normalize, rescale: defaults. consensus:
    (sparsified task vectors, arithmetic.Consensus) -> (merged task vector, survivors or None), as
    `arithmetic.merge_taus`, which is the default. span: (Gram matrix, weights, normalize) -> coefficients. base_use:
    whether there is a base. weighted: whether models have weights. counts: the least and the largest number of models.
    mergekit: how mergekit writes it; None if mergekit has no method of this name and meaning.
    """

    name: str = field(compare=False)
    title: str = field(compare=False)
    source: str = field(compare=False)
    sparsify: Sparsifier | None = None
    combine: Combination = TASK_VECTORS
    keys: tuple[str, ...] = ()
    elect: bool = False
    normalize: bool = False
    rescale: Literal["none", "expectation", "l1"] = "none"
    consensus: Callable[..., Any] | None = None
    span: Callable[..., list[float]] | None = None
    base_use: Literal["needed", "optional", "unused"] = "needed"
    weighted: bool = True
    counts: tuple[int, float] = (1, math.inf)
    mergekit: MergekitForm | None = field(default=MergekitForm(), compare=False)

    @property
    def base(self) -> bool:
        """Tell whether the models are taken relative to a base."""
        return self.base_use == "needed"

    @property
    def seeded(self) -> bool:
        """Tell whether the method draws random numbers, whatever its settings."""
        return self.sparsify is not None and self.sparsify.seeded

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """List the settings of a recipe with this method, besides method, base, models and COMMON_KEYS."""
        keys = self.combine.recipe_keys + self.keys + (ELECTION_KEYS if self.elect else ())
        if self.sparsify is not None:
            keys += (("rescale",) if self.sparsify.model_keys else ()) + self.sparsify.recipe_keys
        return keys + (("seed",) if self.combine.draws else ())

    @property
    def model_keys(self) -> tuple[str, ...]:
        """List the settings of each of its models, besides path and adapter."""
        sparsify = self.sparsify.model_keys if self.sparsify else ()
        return (("weight",) if self.weighted else ()) + sparsify + self.combine.model_keys


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a row. Raises ValueError if the name is taken."""
    if method.name in METHODS:
        raise ValueError(f"{method.name}: a merge method has this name already. Choose another.")
    METHODS[method.name] = method
    return method


TIES, DARE, DELLA = "Yadav et al. 2023", "Yu et al. 2024", "Deep et al. 2024"
BREADCRUMBS = "Davari and Belilovsky 2024"
ONE, TWO, TWO_OR_MORE = (1, 1), (2, 2), (2, math.inf)
for row in (
    Method("linear", "Weighted average", "Wortsman et al. 2022", None, AVERAGE, normalize=True, base_use="unused"),
    Method("passthrough", "Passthrough", "mergekit", None, PASSTHROUGH, base_use="unused", weighted=False, counts=ONE),
    Method("slerp", "SLERP", "Shoemake 1985", None, SLERP, weighted=False, counts=ONE),
    Method("nearswap", "NearSwap", "mergekit", None, NEARSWAP, weighted=False, counts=ONE),
    Method(
        "model_stock", "Model Stock", "Jang et al. 2024", None, SPAN, span=span.model_stock, weighted=False,
        counts=TWO_OR_MORE, mergekit=MergekitForm(fixed=(("filter_wise", False),)),
    ),
    Method(
        "nuslerp", "NuSLERP", "mergekit", None, SPAN, span=span.nuslerp, base_use="optional", counts=TWO,
        mergekit=MergekitForm(fixed=(("nuslerp_flatten", True), ("nuslerp_row_wise", False))),
    ),
    Method(
        "multislerp", "Multi-SLERP", "Goddard 2025", None, SPAN, ("normalize",), span=span.multislerp, normalize=True,
        base_use="optional", mergekit=MergekitForm(fixed=(("eps", 1e-8),), normalize="normalize_weights"),
    ),
    Method(
        "karcher", "Karcher mean", "mergekit", None, SPAN, span=span.karcher, base_use="unused", weighted=False,
        mergekit=MergekitForm(fixed=(("max_iter", 10), ("tol", 1e-5))),
    ),
    Method("task_arithmetic", "Task arithmetic", "Ilharco et al. 2023"),
    Method("ties", "TIES", TIES, MAGNITUDE, elect=True, normalize=True),
    Method("ties_sv", "TIES + slack", "Tao et al. 2024", MAGNITUDE, elect=True, normalize=True, mergekit=None),
    Method("dare_linear", "DARE linear", DARE, RANDOM, rescale="expectation"),
    Method("dare_ties", "DARE TIES", DARE, RANDOM, elect=True, rescale="expectation"),
    Method("breadcrumbs", "Breadcrumbs", BREADCRUMBS, MAGNITUDE_OUTLIERS),
    Method("breadcrumbs_ties", "Breadcrumbs TIES", "mergekit", MAGNITUDE_OUTLIERS, elect=True),
    Method(
        "sce", "SCE", "Wan et al. 2024", VARIANCE, elect=True, normalize=True, weighted=False,
        mergekit=MergekitForm(("int8_mask", "select_topk")),
    ),
    Method(
        "arcee_fusion", "Arcee Fusion", "mergekit", IMPORTANCE, weighted=False, counts=ONE, mergekit=MergekitForm(()),
    ),
    Method("della", "DELLA", DELLA, MAGPRUNE, elect=True, normalize=True, rescale="expectation"),
    Method("della_linear", "DELLA linear", "mergekit", MAGPRUNE, rescale="expectation"),
):  # fmt: skip
    register(row)
