"""The calls of `import modicum`: train, evaluate, compare, study, report, load.

    settings    flat names to a config
    result      what `train` and `load` return, and report
    evaluation  evaluate and compare
    training    train
    study is study.run_study

docs/python.md explains them. Nothing here imports torch before a call needs it.
"""

from modicum.face.evaluation import compare, evaluate
from modicum.face.result import TrainResult, load, report
from modicum.face.training import train
from modicum.study.run import run_study as study

__all__ = ["TrainResult", "compare", "evaluate", "load", "report", "study", "train"]
