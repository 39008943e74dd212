"""The calls of `import modicum`: train, evaluate, compare, study, report, load.

docs/python.md explains them. Nothing here imports torch before a call needs it."""

from modicum.face.evaluation import compare, evaluate
from modicum.face.training import TrainResult, load, report, train
from modicum.study.run import run_study as study

__all__ = ["TrainResult", "compare", "evaluate", "load", "report", "study", "train"]
