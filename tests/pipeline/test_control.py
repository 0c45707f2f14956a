"""The cipher in a plan: one override; whose base it begins with; what is refused and what is said."""

import pytest

from common.errors import BadInput
from pipeline import check, sweep
from pipeline.check.data import check_control
from pipeline.inputs import inputs
from pipeline.run_plan import without_stages
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Stage


def planned(*words: str) -> dict[str, Stage]:
    """The first stage of each kind."""
    config = sweep.expand(["experiment=test", *words], multirun=False).configs[0]
    return {stage.kind: stage for stage in reversed(plan_cell(config, inputs(config)).stages)}


def test_the_cipher_begins_with_the_base_of_chichewa() -> None:
    nya, cipher = planned("language=nya"), planned("language=cipher")
    assert nya["base"].key == cipher["base"].key
    assert nya["corpus"].key != cipher["items"].parents["corpus"].key
    assert cipher["ct_blocks"].parents["corpus"].settings.source == "cipher"


@pytest.mark.parametrize(
    "override",
    ["corpus.replaced=0.5", "corpus.cipher_seed=1", "corpus.withheld_chapters=0.2", "corpus.withheld_seed=1"],
)
def test_what_makes_the_cipher_is_keyed(override: str) -> None:
    assert planned("language=cipher")["items"].key != planned("language=cipher", override)["items"].key


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["model=tiny", "corpus.withheld_seed=1"],
            r"^corpus\.withheld_seed=1: must be model\.recipe\.seed=0.* Set corpus\.withheld_seed=0\.$",
        ),
        (["model=tiny", "corpus.withheld_chapters=0.3"], r"^corpus\.withheld_chapters=0.3: must be at most .*=0\.25, "),
        (["corpus.replaced=0"], r"^corpus\.replaced=0: .*greater than 0"),
        (["corpus.replacd=0.5"], r"corpus\.replacd"),
        (
            ["language.code=nya"],
            r"^language\.code=nya: corpus=cipher needs the language cipher\. Set language=cipher\.$",
        ),
    ],
)
def test_what_cannot_be_a_control_is_refused_in_a_line(words: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refusal:
        planned("language=cipher", *words)
    assert "\n" not in str(refusal.value)


def test_a_base_that_may_have_read_the_text_is_told_of() -> None:
    def said(*words: str) -> list[check.Finding]:
        config = sweep.expand(["experiment=test", "language=cipher", *words], multirun=False).configs[0]
        return list(check_control(without_stages(config)))

    (finding,) = said("model=recipe_b", "model.recipe.withheld_chapters=0.0")
    assert not finding.fails and "withholds no chapter" in str(finding)
    assert not said("model=tiny")
    (unknown,) = said("model=folder", "model.path=models/tiny-base")
    assert "is not known" in str(unknown)
