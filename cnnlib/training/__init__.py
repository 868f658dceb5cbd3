"""Floor 3: how a network is trained, and what a long run leaves behind.

A `Recipe` says everything that a run depends on; `fit` yields one `Epoch` after another and neither prints nor draws;
`records` keeps what a full run of several seeds found, and says when it no longer holds.
"""

from cnnlib.training.engine import Epoch, Score, evaluate, fit, pick_device, scores
from cnnlib.training.estimates import RunCost, what_it_costs
from cnnlib.training.parts import SGD, AdamW, Constant, Cosine, CrossEntropy, MaximumAPosteriori, Steps
from cnnlib.training.recipe import Recipe
from cnnlib.training.records import run_record

__all__ = [
    "SGD",
    "AdamW",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Epoch",
    "MaximumAPosteriori",
    "Recipe",
    "RunCost",
    "Score",
    "Steps",
    "evaluate",
    "fit",
    "pick_device",
    "run_record",
    "scores",
    "what_it_costs",
]
