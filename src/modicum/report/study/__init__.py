"""The report of a study: its folder to figures, one self-contained page and Markdown.

`read` loads the folder, `document` says what the report says, `page` writes it. All numbers
of inference come from `analysis.json`; nothing here computes a verdict.
"""
