"""Which learning rate a curve suggests: plain functions of learning rates and losses.

>>> import numpy as np
>>> lrs = np.logspace(-6, 0, 100)
>>> 1e-3 < steep(lrs, 2.3 - 2 / (1 + (2e-3 / lrs) ** 2)) < 4e-3
True
"""

from onecycle.suggest.descent import capped, finite_prefix, smooth
from onecycle.suggest.rules import minimum, slide, steep, valley
from onecycle.suggest.sweep import LANDMARKS, Suggestion, agreed, bracket, pooled, refined, suggest
from onecycle.suggest.validated import race, range_test, smooth_linear

__all__ = [
    "LANDMARKS",
    "Suggestion",
    "agreed",
    "bracket",
    "capped",
    "finite_prefix",
    "minimum",
    "pooled",
    "race",
    "range_test",
    "refined",
    "slide",
    "smooth",
    "smooth_linear",
    "steep",
    "suggest",
    "valley",
]
