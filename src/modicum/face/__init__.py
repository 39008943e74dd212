"""The calls of `import modicum`: train, evaluate, compare, study, report, load.

    settings    flat names to a config
    result      what `train` and `load` return
    evaluation  evaluate and compare
    training    train
    reports     report; study is study.run_study

docs/python.md explains them. Nothing here imports torch before a call needs it.
"""

from __future__ import annotations

from modicum.face.evaluation import compare, evaluate
from modicum.face.reports import report
from modicum.face.result import TrainResult, load
from modicum.face.training import train
from modicum.study.run import run_study as study

__all__ = ["TrainResult", "compare", "evaluate", "load", "report", "study", "train"]
