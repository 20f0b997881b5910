"""Daemons and workers that misbehave on purpose, each named by its misdeed."""
