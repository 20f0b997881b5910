"""Shows that each hardening is needed: removes it from a copy of the tree, and requires the tests that it names to fail.

`python -m tests.hardening` runs all of it; one file per room lists what is removed.
"""
