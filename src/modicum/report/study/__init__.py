"""What the report of a study says, which `report.page` writes.

`read` loads the folder, `document` says what is in the report. All numbers
of inference come from `analysis.json`; nothing here computes a verdict.
"""
