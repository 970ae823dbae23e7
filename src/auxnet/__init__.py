"""auxnet: train a deep CNN once, with classifiers at several depths, and take away a ladder of models.

Names are imported when they are first used, so that `import auxnet` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AuxNet": "network",
    "EarlyExit": "exits",
    "Method": "method",
    "OutputReport": "evaluation",
    "Prediction": "prediction",
    "PretrainedAuxNet": "hub",
    "Progress": "progress",
    "Recipe": "recipe",
    "Run": "train",
    "Unreadable": "prediction",
    "attach": "backbones.attaching",
    "compare_runs": "comparing",
    "early_exit": "exits",
    "evaluate": "opening",
    "export": "exporting",
    "fit": "train",
    "joint": "methods",
    "load": "hub",
    "load_pretrained": "backbones.weights",
    "multiway": "methods",
    "opened": "opening",
    "pairwise": "methods",
    "predict": "prediction",
    "resnet": "residual",
    "select": "selection",
    "select_on": "selection",
    "solve_exits": "solving",
    "solve_exits_on": "solving",
    "supervision": "diagnosis",
    "sweep": "sweeps.sweeping",
    "write_report": "report",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from auxnet.backbones.attaching import attach as attach
    from auxnet.backbones.weights import load_pretrained as load_pretrained
    from auxnet.comparing import compare_runs as compare_runs
    from auxnet.diagnosis import supervision as supervision
    from auxnet.evaluation import OutputReport as OutputReport
    from auxnet.exits import EarlyExit as EarlyExit
    from auxnet.exits import early_exit as early_exit
    from auxnet.exporting import export as export
    from auxnet.hub import PretrainedAuxNet as PretrainedAuxNet
    from auxnet.hub import load as load
    from auxnet.method import Method as Method
    from auxnet.methods import joint as joint
    from auxnet.methods import multiway as multiway
    from auxnet.methods import pairwise as pairwise
    from auxnet.network import AuxNet as AuxNet
    from auxnet.opening import evaluate as evaluate
    from auxnet.opening import opened as opened
    from auxnet.prediction import Prediction as Prediction
    from auxnet.prediction import Unreadable as Unreadable
    from auxnet.prediction import predict as predict
    from auxnet.progress import Progress as Progress
    from auxnet.recipe import Recipe as Recipe
    from auxnet.report import write_report as write_report
    from auxnet.residual import resnet as resnet
    from auxnet.selection import select as select
    from auxnet.selection import select_on as select_on
    from auxnet.solving import solve_exits as solve_exits
    from auxnet.solving import solve_exits_on as solve_exits_on
    from auxnet.sweeps.sweeping import sweep as sweep
    from auxnet.train import Run as Run
    from auxnet.train import fit as fit


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"auxnet.{_HOME[name]}"), name)
    raise AttributeError(f"module 'auxnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
