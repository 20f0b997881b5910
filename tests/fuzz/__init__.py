"""Fuzzing of every decoder that reads from a peer, a client or a file: `python -m tests.fuzz --help`."""
