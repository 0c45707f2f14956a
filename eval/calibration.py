"""Label priors removed without labels: batch calibration.

A model prefers some labels whatever is asked. Each label's probability is divided by its mean over prompts whose
answers are not looked at: argmax_j p(j | x) / mean_x' p(j | x'), with p normalised over the labels (Zhou et al., Batch
Calibration, arXiv 2309.17249). Pure: numbers in, numbers out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

Floats = NDArray[np.float64]


def log_shares(loglikelihoods: ArrayLike) -> Floats:
    """Log-likelihoods in nats, (prompts, labels), normalised so that the labels' probabilities add up to 1."""
    return np.asarray(log_softmax(np.asarray(loglikelihoods, dtype=np.float64), axis=1))


def log_priors(loglikelihoods: ArrayLike) -> Floats:
    """The log of each label's mean probability over prompts: (prompts, labels) -> (labels,)."""
    shares = log_shares(loglikelihoods)
    return np.asarray(np.logaddexp.reduce(shares, axis=0) - np.log(len(shares)))


def predictions(loglikelihoods: ArrayLike, unlabelled: ArrayLike) -> NDArray[np.int64]:
    """The label of each prompt, (prompts,), with the priors of other prompts (which may be the same) divided out.

    loglikelihoods: (prompts, labels). unlabelled: (other prompts, labels).
    """
    return np.asarray(np.argmax(log_shares(loglikelihoods) - log_priors(unlabelled), axis=1))
