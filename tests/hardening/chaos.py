"""Chaos: what judges whole runs must notice. A judge that overlooks something is taken out of the same tree, and its tests fail."""

from tests.hardening.removal import Removal

_WITNESS = "tests/chaos/test_witness.py"
_CURVES = "tests/chaos/test_soak_curves.py"
_SCHEDULE = "tests/chaos/test_schedule.py"
_LINKS = "tests/chaos/test_links.py"
_STRIKES = "tests/chaos/test_strikes.py"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "two blocks at one height, overlooked",
        "tests/chaos/witness.py",
        "        if known.block_hash != block_hash:\n",
        "        if not block_hash:\n",
        (f"{_WITNESS}::test_two_blocks_at_a_height_are_a_violation",),
    ),
    Removal(
        "two states after one block, overlooked",
        "tests/chaos/witness.py",
        "        elif known.state_digest != state_digest:\n",
        "        elif not state_digest:\n",
        (f"{_WITNESS}::test_one_block_with_two_states_is_a_violation",),
    ),
    Removal(
        "a transaction executed at two places, overlooked",
        "tests/chaos/witness.py",
        "        if (known.height, known.status) != (height, status):\n",
        "        if not known.height:\n",
        (f"{_WITNESS}::test_a_transaction_that_moves_or_is_executed_twice_is_a_violation",),
    ),
    Removal(
        "an acknowledged transaction that is on no disk, overlooked",
        "tests/chaos/witness.py",
        "if placed.get(tx_hash) != place.height]",
        "if placed.get(tx_hash, place.height) != place.height]",
        (f"{_WITNESS}::test_what_any_node_called_executed_is_missed_on_every_disk_that_lacks_it",),
    ),
    Removal(
        "an honest validator accused of contradicting itself, overlooked",
        "tests/chaos/trial.py",
        'or ("misbehaved" in line and any(key in line for key in honest))',
        "or not line",
        (
            f"{_WITNESS}::"
            "test_a_log_may_accuse_the_hostile_but_nobody_honest_and_holds_no_traceback_and_no_divergence",
        ),
    ),
    Removal(
        "an honest peer banned by another, overlooked",
        "tests/chaos/trial.py",
        '        or ("banned=True" in line and any(peer in line for peer in peers))\n',
        "",
        (
            f"{_WITNESS}::"
            "test_no_log_may_say_that_an_honest_peer_was_banned_and_what_is_held_against_one_is_counted",
        ),
    ),
    Removal(
        "a Byzantine validator that is struck by other faults too, so that more than f are faulty",
        "tests/chaos/schedule.py",
        "            honest = [name for name in validators if not (turned and name == byzantine)]\n",
        "            honest = list(validators)\n",
        (f"{_SCHEDULE}::test_never_more_than_f_validators_are_faulty_but_where_that_is_the_fault",),
    ),
    Removal(
        "who leaves without having joined, so that a run of changes changes nothing",
        "tests/chaos/schedule.py",
        "    if kind is Kind.LEAVE and not inside:\n",
        "    if kind is Kind.LEAVE and inside is None:\n",
        (f"{_SCHEDULE}::test_who_leaves_has_joined_and_nobody_joins_twice",),
    ),
    Removal(
        "a Byzantine validator whose key a signer holds, so that it cannot lie",
        "tests/chaos/schedule.py",
        "    turning = [name for name in validators if name != roles.signed]\n",
        "    turning = list(validators)\n",
        (
            f"{_SCHEDULE}::"
            "test_only_who_has_its_key_elsewhere_or_no_key_loses_its_disk_and_the_byzantine_one_has_no_signer",
        ),
    ),
    Removal(
        "a transaction lost above what a disk was told to forget, overlooked",
        "tests/chaos/witness.py",
        "            if place.height >= kept_from and",
        "            if place.height > kept_from and",
        (f"{_WITNESS}::test_what_a_disk_forgot_as_it_was_told_to_is_not_missed_there_and_all_else_is",),
    ),
    Removal(
        "a lost disk that comes back by executing every block, overlooked",
        "tests/chaos/returns.py",
        "        if INSTALLED not in self._said(name):\n            return [",
        "        if not self._since:\n            return [",
        (f"{_STRIKES}::test_who_lost_its_disk_and_comes_back_without_a_snapshot_is_a_finding",),
    ),
    Removal(
        "a struck validator that votes late, overlooked",
        "tests/chaos/__main__.py",
        "        if row.voted_s is not None and ",
        "        if row.voted_s is None and 0 > ",
        (
            f"{_STRIKES}::"
            "test_a_struck_validator_that_votes_late_is_a_finding_and_one_that_waits_for_an_epoch_has_longer",
        ),
    ),
    Removal(
        "votes of another validator taken for one's own",
        "tests/chaos/ballots.py",
        "validators.validators[index].id for index, _ in",
        "validators.validators[index - index % 2].id for index, _ in",
        (f"{_STRIKES}::test_a_certificates_voters_are_named_by_their_keys_and_counted_between_two_heights",),
    ),
    Removal(
        "a cut that cuts nothing",
        "tests/chaos/links.py",
        "                await self._opened(way)\n",
        "",
        (f"{_LINKS}::test_silence_of_one_way_holds_bytes_back_until_it_heals",),
    ),
    Removal(
        "a daemon that ends with a full disk and starts tasks meanwhile: a traceback beside its reason",
        "node/small_tasks.py",
        "                self._nursery = None\n",
        "                pass\n",
        (
            "tests/chaos/test_ending.py::"
            "test_what_is_started_while_the_daemon_ends_is_dropped_and_the_reason_of_its_end_stays_alone",
        ),
    ),
    Removal(
        "a leak, overlooked",
        "tests/chaos/soak.py",
        "            if slope > bound.per_hour_max:\n",
        "            if slope > 2 * bound.per_hour_max:\n",
        (f"{_CURVES}::test_twice_the_slope_that_is_allowed_is_a_finding_and_half_of_it_is_none",),
    ),
    Removal(
        "a validator that looks for its signer ever more rarely, so that a quorum that lacks its vote waits",
        "node/signer/remote.py",
        "RETRY_S_MAX = 2.0\n",
        "RETRY_S_MAX = 10.0\n",
        (
            "tests/integration/test_signer_return.py::"
            "test_a_daemon_whose_validator_may_be_needed_for_the_quorum_looks_for_its_signer_every_few_seconds[53.0]",
        ),
    ),
    Removal(
        "a newcomer behind the epoch that it is in, which bans every validator that opens a stream to it",
        "node/network/network.py",
        "        points = 0 if peer_id in self._admitted else 10\n",
        "        points = 10\n",
        (
            "tests/integration/test_network_epochs.py::"
            "test_a_validator_of_an_epoch_that_a_node_has_not_come_to_is_refused_and_not_banned",
        ),
    ),
)
