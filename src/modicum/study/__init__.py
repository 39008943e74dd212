"""Studies: several updates, each tuned and run over several seeds, compared with one control.

`run` has the order of the work and `design` what is compared; a run of a study is a `cell`, and a
`launch`er runs it. `scan` is a study of every layer, block or part alone. What the runs came to is
`collect`ed, compared by `inference`, and put into numbers and words by `analysis`.
docs/statistics.md has the statistics: model, formulas, measured error rates.
"""

from modicum.study.design import Allowance, Placebos, Study, Tuning
from modicum.study.launch import StudyObserver
from modicum.study.run import StudyOutcome, analyse_study, run_study, study_cost, study_status

__all__ = [
    "Allowance", "Placebos", "Study", "StudyObserver", "StudyOutcome", "Tuning",
    "analyse_study", "run_study", "study_cost", "study_status",
]  # fmt: skip
