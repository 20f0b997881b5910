"""Jolteon with commit votes: the ordering core, pure and deterministic.

One door: `consensus.replica.Replica.step(input) -> list[Effect]`. No clock, disk, socket or randomness inside;
payloads are opaque digests. The rules, each mapped to its code and to the papers, with the departures and the
argument for safety and liveness, are in docs/protocol.md. Papers: Jolteon (arXiv 2106.10362), explicit commit
votes as in Commit Moonshot (arXiv 2401.01791) and Aptos AIP-89.
"""
