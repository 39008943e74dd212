"""The figures of reports, and what several share: `curves`, `panels`."""
