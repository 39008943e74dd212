"""Commands, each a function of its arguments that gives the exit code (see help.toml)."""
