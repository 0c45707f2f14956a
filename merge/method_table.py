"""The merge methods: names, sources, and settings.

One row per method, and no other list of methods. A method is a way to sparsify task vectors, a way to combine them
(with or without a sign election), and defaults. `register` adds a row; a method whose arithmetic differs from
`methods.merge_taus` has its own `consensus`. It imports no torch: plans and configs read this table too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from merge import span

# What a model of a recipe may be given, with the default. mergekit's are the same, but it asks for the weight, and has
# no random signs.
MODEL_DEFAULTS: MappingProxyType[str, Any] = MappingProxyType(
    {"weight": 1.0, "density": 1.0, "gamma": 0.01, "epsilon": 0.15, "random_signs": False, "scale": 1.0}
)
ELECTION_KEYS = (
    "slack", "protect", "slack_form", "slack_scale", "on_slack", "slack_scope", "slack_share", "election",
)  # fmt: skip
COMMON_KEYS = ("compute_dtype", "out_dtype", "tokenizer", "chat_template", "special_rows", "exact")  # of every recipe


@dataclass(frozen=True)
class Sparsifier:
    """A way to sparsify a task vector. model_keys: settings that it reads per model; seeded: whether it draws."""

    name: str
    model_keys: tuple[str, ...]
    seeded: bool = False


MAGNITUDE = Sparsifier("magnitude", ("density",))  # the largest values stay
RANDOM = Sparsifier("random", ("density",), seeded=True)  # each value stays with the same probability
MAGNITUDE_OUTLIERS = Sparsifier("magnitude_outliers", ("density", "gamma"))  # the largest go, and the smallest
MAGPRUNE = Sparsifier("magprune", ("density", "epsilon"), seeded=True)  # larger values stay with higher probability

VARIANCE = Sparsifier("variance", ())  # the parameters in which the models differ most stay, in all of them
IMPORTANCE = Sparsifier("importance", ())  # what moves a row's distribution most stays


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

    combine: what the result is made of: `task_vectors` on a base, the `average` of weights, the `arc` from the base to
    one model, one model's task vector cut to a size (`near`), one model's weights times a scale (`copy`), or a point in
    the models' `span`, by the coefficients of the function of that name (merge/span.py). base_use: whether there is a
    base. weighted: whether models have weights. counts: the least and the largest number of models. elect: whether
    signs are elected; normalize, rescale: defaults. consensus: (sparsified task vectors, methods.Consensus) -> what
    `methods.merge_taus` returns, which is the default. mergekit: how mergekit writes it; None if mergekit has no method
    of this name and meaning.
    """

    name: str = field(compare=False)
    title: str = field(compare=False)
    source: str = field(compare=False)
    sparsify: Sparsifier | None = None
    elect: bool = False
    normalize: bool = False
    rescale: Literal["none", "expectation", "l1"] = "none"
    combine: Literal["task_vectors", "average", "arc", "near", "copy", "span"] = "task_vectors"
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
        """Tell whether the method draws random numbers."""
        return self.sparsify is not None and self.sparsify.seeded

    @property
    def recipe_keys(self) -> tuple[str, ...]:
        """List the settings of a recipe with this method, besides method, base, models and COMMON_KEYS."""
        own = {
            "task_vectors": ("lambda", "norm", "norm_of", "normalize"),
            "average": ("normalize",),
            "copy": (),
            "span": ("normalize",) if self.normalize else (),
        }
        keys = own.get(self.combine, ("t",)) + (ELECTION_KEYS if self.elect else ())
        keys += ("rescale",) if self.sparsify and self.sparsify.model_keys else ()
        keys += ("select_topk",) if self.sparsify == VARIANCE else ()
        return keys + (("seed",) if self.combine == "task_vectors" else ())  # of random signs too

    @property
    def model_keys(self) -> tuple[str, ...]:
        """List the settings of each of its models, besides path and adapter."""
        own: dict[str, tuple[str, ...]] = {"task_vectors": ("random_signs",), "copy": ("scale",)}
        thinned = self.sparsify.model_keys if self.sparsify else ()
        return (*(("weight",) if self.weighted else ()), *thinned, *own.get(self.combine, ()))


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a row. Raises ValueError if the name is taken."""
    if method.name in METHODS:
        raise ValueError(f"{method.name}: a merge method has this name already. Choose another.")
    METHODS[method.name] = method
    return method


TIES = "Yadav et al. 2023"
DARE = "Yu et al. 2024"
DELLA = "Deep et al. 2024"
for row in (
    Method("linear", "Weighted average", "Wortsman et al. 2022", normalize=True, combine="average", base_use="unused"),
    Method("passthrough", "Passthrough", "mergekit", combine="copy", base_use="unused", weighted=False, counts=(1, 1)),
    Method("slerp", "SLERP", "Shoemake 1985", combine="arc", weighted=False, counts=(1, 1)),
    Method("nearswap", "NearSwap", "mergekit", combine="near", weighted=False, counts=(1, 1)),
    Method(
        "model_stock",
        "Model Stock",
        "Jang et al. 2024",
        combine="span",
        span=span.model_stock,
        weighted=False,
        counts=(2, math.inf),
        mergekit=MergekitForm(fixed=(("filter_wise", False),)),
    ),
    Method(
        "nuslerp",
        "NuSLERP",
        "mergekit",
        combine="span",
        span=span.nuslerp,
        base_use="optional",
        counts=(2, 2),
        mergekit=MergekitForm(fixed=(("nuslerp_flatten", True), ("nuslerp_row_wise", False))),
    ),
    Method(
        "multislerp",
        "Multi-SLERP",
        "Goddard 2025",
        combine="span",
        span=span.multislerp,
        normalize=True,
        base_use="optional",
        mergekit=MergekitForm(fixed=(("eps", 1e-8),), normalize="normalize_weights"),
    ),
    Method(
        "karcher",
        "Karcher mean",
        "mergekit",
        combine="span",
        span=span.karcher,
        base_use="unused",
        weighted=False,
        mergekit=MergekitForm(fixed=(("max_iter", 10), ("tol", 1e-5))),
    ),
    Method("task_arithmetic", "Task arithmetic", "Ilharco et al. 2023"),
    Method("ties", "TIES", TIES, MAGNITUDE, elect=True, normalize=True),
    Method("ties_sv", "TIES + slack", "Tao et al. 2024", MAGNITUDE, elect=True, normalize=True, mergekit=None),
    Method("dare_linear", "DARE linear", DARE, RANDOM, rescale="expectation"),
    Method("dare_ties", "DARE TIES", DARE, RANDOM, elect=True, rescale="expectation"),
    Method("breadcrumbs", "Breadcrumbs", "Davari and Belilovsky 2024", MAGNITUDE_OUTLIERS),
    Method("breadcrumbs_ties", "Breadcrumbs TIES", "mergekit", MAGNITUDE_OUTLIERS, elect=True),
    Method(
        "sce",
        "SCE",
        "Wan et al. 2024",
        VARIANCE,
        elect=True,
        normalize=True,
        weighted=False,
        mergekit=MergekitForm(("int8_mask", "select_topk")),
    ),
    Method(
        "arcee_fusion",
        "Arcee Fusion",
        "mergekit",
        IMPORTANCE,
        weighted=False,
        counts=(1, 1),
        mergekit=MergekitForm(parameters=()),
    ),
    Method("della", "DELLA", DELLA, MAGPRUNE, elect=True, normalize=True, rescale="expectation"),
    Method("della_linear", "DELLA linear", "mergekit", MAGPRUNE, rescale="expectation"),
):
    register(row)
