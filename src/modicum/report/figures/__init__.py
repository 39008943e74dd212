"""The figures of reports, a file each: what is drawn, its caption and its words.

The words are for those who do not see the figure: what it shows and its main values. Beside
them, what several share: `curves`, `labels` and `panels`.
"""
