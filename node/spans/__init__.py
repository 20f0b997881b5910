"""Verbatim spans of a datanet's records, kept up beside the ledger by nodes that are told to; pays nobody by itself."""
