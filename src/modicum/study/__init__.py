"""Studies: several updates, each tuned and run over several seeds, compared with one control.

    design      what is compared, as study.toml or Python says it
    run         the order of the work: cost, base, tuning, runs, analysis, report
    cells       its runs; cell: one of them; launch: where they run, so many at a time
    cost        what it will take
    tuning      the learning rate of each arm
    collect     the folder as data; analysis: that to analysis.json
    twolevel    a table of seeds x problems: its mean squares, a t-interval, how many seeds settle it
    bootstrap   the hierarchical bootstrap of such a table
    estimate    an interval of the mean of a table, and p-values that agree with it
    inference   arms: intervals, differences to the control, tests, verdicts
    retention   the share of the control's gain that an arm keeps
    verdict     the same in words
    scan        a study of every layer, block or part alone; ranking: its statistics

docs/statistics.md has the statistics: model, formulas, measured error rates.
"""

from modicum.study.design import Allowance, Placebos, Study, Tuning
from modicum.study.launch import StudyObserver
from modicum.study.run import StudyOutcome, analyse_study, run_study, study_cost, study_status

__all__ = [
    "Allowance", "Placebos", "Study", "StudyObserver", "StudyOutcome", "Tuning",
    "analyse_study", "run_study", "study_cost", "study_status",
]  # fmt: skip
