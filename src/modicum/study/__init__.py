"""Studies: several updates, each tuned and run over several seeds, compared with one control.

docs/study.md, and docs/statistics.md for model, formulas, measured error rates."""

from modicum.study.design import Allowance, Placebos, Study, Tuning
from modicum.study.launch import StudyObserver
from modicum.study.run import StudyOutcome, analyse_study, run_study, study_cost, study_status

__all__ = [
    "Allowance", "Placebos", "Study", "StudyObserver", "StudyOutcome", "Tuning",
    "analyse_study", "run_study", "study_cost", "study_status",
]  # fmt: skip
