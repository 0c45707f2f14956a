"""The schema of the composed config: types and bounds, no values, which are in conf/.

Input: what Hydra composed; output: a `Config`, or BadInput of one line. A config is validated once, at the edge; all
other code gets a `Config` and trusts it. To change a key of conf/, change the file of its section here.
"""

from common.validation import error_line
from pipeline.config.adapting import Adapt
from pipeline.config.cell import Config, validate
from pipeline.config.computing import Compute
from pipeline.config.models import BaseRecipe, Model, ModelShape
from pipeline.config.scoring import Evaluation, Merge, Method
from pipeline.config.sources import CipherCorpus, Corpus, HubCorpus, HubSource, Language
from pipeline.config.trainings import ContinualTraining, Instructions, Training

__all__ = [
    "Adapt",
    "BaseRecipe",
    "CipherCorpus",
    "Compute",
    "Config",
    "ContinualTraining",
    "Corpus",
    "Evaluation",
    "HubCorpus",
    "HubSource",
    "Instructions",
    "Language",
    "Merge",
    "Method",
    "Model",
    "ModelShape",
    "Training",
    "error_line",
    "validate",
]
