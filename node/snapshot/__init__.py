"""Snapshots of the ledger's state: made, offered, fetched, checked and installed."""
