"""The report of a study: its folder to figures, one self-contained page and Markdown.

`read` loads the folder, `page` writes the HTML and `markdown` the text beside it. All
numbers of inference come from `analysis.json`; nothing here computes a verdict.
"""
