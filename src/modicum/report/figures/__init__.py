"""The figures of reports, a file each, and what several share: `curves`, `labels`, `panels`."""
