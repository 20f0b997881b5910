"""Models and adapters of the Hugging Face formats, in and out: docs/models.md.

What is read here was downloaded from strangers: every file, count and size has a limit, every key of a configuration is
known or refused by its name, and nothing that could run code (pickle, remote code) is opened.
"""
