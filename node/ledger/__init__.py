"""What transactions mean: state, transitions, fees, audits. A pure function of bytes to bytes.

Nothing here reads a clock, a disk, a socket or a random number, and nothing is a float: two nodes that execute
the same blocks hold the same bytes. Start reading at :mod:`node.ledger.execute`; the formulas and parameters are
in ``docs/economics.md``.
"""
