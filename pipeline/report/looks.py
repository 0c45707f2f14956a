"""How methods look: a colour a family of methods, a dash and a shape a member, the same in the page and in figures.

Colours are those of Okabe and Ito, which most colour-blind people can tell apart; nothing is shown by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from merge.methods import METHODS
from pipeline.baselines import BASELINES
from pipeline.report.records import labels
from pipeline.report.results import methods_in_order

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31")
SHAPES = ("circle", "triangle-up", "triangle-down", "cross", "diamond", "square", "triangle-left", "triangle-right")
DASHES = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (4, 1))
INK, SOFT = "ink", "soft"  # the text's colours, which are not the same on paper and in the dark
GREYS = {"base": "#a3a3a3", "sft": "#858585", "ct": SOFT, "ct_then_sft": INK}
TRAINED, OTHERS = "trained, not merged", "others"
SHOWN_MERGES = 5  # of as many families, in a page that was just opened


@dataclass(frozen=True)
class Look:
    """A method as it is drawn. color: `#rrggbb`, or INK or SOFT."""

    method: str
    title: str
    family: str
    color: str
    dash: tuple[int, ...]
    shape: str


def looks(methods: Iterable[str], recipes: Mapping[str, str]) -> dict[str, Look]:
    """Return a look for each method. recipes: by the merge, what its recipe's `method` is, as far as that is known."""
    order = methods_in_order(methods)
    titles = labels(order)
    families: dict[str, list[str]] = {}
    for method in order:
        families.setdefault(family_of(method, recipes), []).append(method)
    colours = dict(zip((name for name in families if name != TRAINED), _endless(PALETTE), strict=False))
    drawn = {}
    for place, (family, members) in enumerate(families.items()):
        for number, method in enumerate(members):
            dash, shape = DASHES[number % len(DASHES)], SHAPES[(place + number) % len(SHAPES)]
            if family == TRAINED:
                color, shape = GREYS.get(method.rpartition("/")[2], SOFT), SHAPES[-1 - number % len(SHAPES)]
                dash = (1, 0) if method in ("ct", "ct_then_sft") else DASHES[1 + number % (len(DASHES) - 1)]
            else:
                color = colours[family]
            drawn[method] = Look(method, titles[method], family, color, dash, shape)
    return {method: drawn[method] for method in order}


def family_of(method: str, recipes: Mapping[str, str]) -> str:
    """Return the family of a method: that of its recipe, else of the longest method that its name begins with."""
    name = method.rpartition("/")[2]  # of several reports next to each other
    if name in BASELINES:
        return TRAINED
    named = [other for other in METHODS if name == other or name.startswith(f"{other}_")]
    recipe = recipes.get(method) or max(named, key=len, default="")
    if recipe not in METHODS:
        return OTHERS
    return METHODS[recipe].title.removesuffix(" linear").removesuffix(" TIES")


def shown_first(drawn: Mapping[str, Look]) -> list[str]:
    """List the methods that a page shows first: models without CT, CT, CT-then-SFT, the upper bound, one merge per
    family.

    Of a family it is the first merge; scores play no part.
    """
    trained = [method for method in ("base", "sft", "ct", "ct_then_sft", "target_sft") if method in drawn]
    first: dict[str, str] = {}
    for method, look in drawn.items():
        if look.family not in (TRAINED, OTHERS):
            first.setdefault(look.family, method)
    return [*trained, *islice(first.values(), SHOWN_MERGES)] or list(drawn)[: 2 * SHOWN_MERGES]


def _endless(colours: tuple[str, ...]) -> Iterable[str]:
    while True:
        yield from colours
