"""Golden bytes: every kind that is hashed or signed, every message that is sent, as JSON that is changed only on purpose.

`python -m tests.vectors` checks the files against the code; `--write` writes them anew.
"""
