"""Everything of a node with a side effect, and the ledger's pure meaning of what it orders."""

__version__ = "0.1.0"
