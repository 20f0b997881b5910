"""The same bits on unlike machines: golden hashes in processes of their own, over what decides which kernels run.

`python -m tests.machines` runs every combination; the tests run a set that covers each pair of choices.
"""
