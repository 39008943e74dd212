"""Studies: several updates, each tuned and run over several seeds, compared with one control.

    design      study.toml: arms, seeds, budget, tuning, margin
    cost        what it will take
    run         its cells in order; launch: so many at a time; cell: one, in its own process
    tuning      the learning rate of each arm
    collect     the folder as data; analysis: that to analysis.json
    twolevel    a table of seeds x problems: its mean squares and a t-interval
    bootstrap   the hierarchical bootstrap of such a table
    estimate    an interval of the mean of a table, and p-values that agree with it
    inference   arms: intervals, differences to the control, tests, verdicts
    retention   the share of the control's gain that an arm keeps
    power       how many seeds would settle an arm
    verdict     the same in words
    populations studies of known truth
    simulate    `python -m modicum.study.simulate`: how often the verdicts are wrong on them

docs/statistics.md has the statistics: model, formulas, measured error rates.
"""
