"""The ``openledger`` command line."""
