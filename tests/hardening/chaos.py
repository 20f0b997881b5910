"""Chaos: what judges whole runs must notice. A judge that overlooks something is taken out of the same tree, and its tests fail."""

from tests.hardening.removal import Removal

_WITNESS = "tests/chaos/test_witness.py"
_CURVES = "tests/chaos/test_soak_curves.py"
_SCHEDULE = "tests/chaos/test_schedule.py"
_LINKS = "tests/chaos/test_links.py"

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
        "a Byzantine validator that is struck by other faults too, so that more than f are faulty",
        "tests/chaos/schedule.py",
        "            honest = [name for name in validators if not (turned and name == byzantine)]\n",
        "            honest = list(validators)\n",
        (f"{_SCHEDULE}::test_never_more_than_f_validators_are_faulty_but_where_that_is_the_fault",),
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
        "node/node.py",
        "                self._background = None\n",
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
)
