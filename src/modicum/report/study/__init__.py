"""The report of a study. All inference is in `analysis.json`; no verdict is computed here."""
