"""What keeps an index the same whoever builds its shards, and which test notices its absence."""

from __future__ import annotations

from tests.hardening.removal import Removal

_SHARDING = "tests/unit/attribution/test_sharding.py::"
_DAMAGED = (
    f"{_SHARDING}test_a_damaged_or_missing_file_between_two_steps_ends_the_build_and_leaves_the_old_index"
)
_WHITENING = "tests/unit/attribution/test_whitening.py::"
FILES = "attribution/sharding/files.py"
PROCESSES = "attribution/sharding/processes.py"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "gradients that changed on disk between two steps",
        "attribution/sharding/steps.py",
        "if file.readinto(data) != len(data) or digest_of(memoryview(data)) != digest:",
        "if file.readinto(data) != len(data):",
        (f"{_DAMAGED}[gradients-1.bin-gradients-damage]",),
    ),
    Removal(
        "sums of a shard that changed on disk",
        FILES,
        "if len(data) > bytes_max or digest_of(data) != digest:",
        "if len(data) > bytes_max:",
        (f"{_DAMAGED}[squares-1.bin-squares-damage]",),
    ),
    Removal(
        "rows of a shard that changed on disk",
        FILES,
        "    if hasher.hexdigest() != digest:\n",
        "    if not digest:\n",
        (f"{_DAMAGED}[rows-1.bin-rows-damage]",),
    ),
    Removal(
        "half a file under a whole one's name",
        FILES,
        "    except BaseException:\n        with suppress(FileNotFoundError):\n            os.unlink(name)\n",
        "    except BaseException:\n        os.replace(name, path)\n",
        (f"{_SHARDING}test_files_are_whole_or_absent_and_known_by_their_digests",),
    ),
    Removal(
        "what a killed build left behind",
        "attribution/sharding/build.py",
        "    shutil.rmtree(work, ignore_errors=True)\n    work.mkdir(parents=True)\n",
        "    work.mkdir(parents=True, exist_ok=True)\n",
        (f"{_SHARDING}test_what_a_killed_build_left_is_not_trusted",),
    ),
    Removal(
        "a process that dies takes the build with it",
        PROCESSES,
        "if tries >= self._tries_max:",
        "if tries >= 1:",
        (f"{_SHARDING}test_a_process_that_is_killed_in_the_middle_of_its_shard_changes_nothing",),
    ),
    Removal(
        "a process that is silent for ever",
        PROCESSES,
        "            elif time.monotonic() - child.since_s > self._engine.patience_s and (\n",
        "            elif time.monotonic() - child.since_s > 1e9 and (\n",
        (f"{_SHARDING}test_what_no_process_can_do_ends_the_build[silent]",),
    ),
    Removal(
        "a process that takes all memory",
        "attribution/sharding/child.py",
        "    limit_memory(options.memory_bytes)\n",
        "",
        (f"{_SHARDING}test_what_no_process_can_do_ends_the_build[memory]",),
    ),
    Removal(
        "moments beyond what binary64 holds",
        "attribution/whitening/bases.py",
        "    return torch.cat(found).to(torch.int64)\n",
        "    return torch.cat(found)\n",
        (f"{_WHITENING}test_moments_are_integers_that_may_pass_binary64",),
    ),
    Removal(
        "too many examples in one sum of binary64",
        "attribution/whitening/bases.py",
        "    if len(gradient) > MOMENT_EXAMPLES_MAX:\n",
        "    if len(gradient) > 2 * MOMENT_EXAMPLES_MAX:\n",
        (f"{_WHITENING}test_moments_are_integers_that_may_pass_binary64",),
    ),
    Removal(
        "squares that overflow where all of a record lies in one direction",
        "attribution/whitening/weights.py",
        ".clamp_(-SQUARED_MAX, SQUARED_MAX)",
        "",
        (f"{_WHITENING}test_a_coordinate_beyond_the_grid_counts_as_its_end",),
    ),
    Removal(
        "the root of a pivot that rounding made negative",
        "attribution/whitening/wide.py",
        "clamp_min(PIVOT_MIN).float()",
        "float()",
        (f"{_WHITENING}test_moments_without_a_direction_turn_nothing",),
    ),
    Removal(
        "a side too wide to be turned",
        "attribution/whitening/bases.py",
        "    if gradient.shape[1] <= WIDE_TURNED_MAX:\n",
        "    if gradient.shape[1] <= WIDE_MAX:\n",
        (f"{_WHITENING}test_a_side_too_wide_is_not_turned",),
    ),
    Removal(
        "a query with bits that no plane has",
        "attribution/signs.py",
        "    if int(np.abs(query).max(initial=0)) > 1 << (QUERY_BITS - 1):\n",
        "    if int(np.abs(query).max(initial=0)) > 1 << 30:\n",
        (
            "tests/unit/attribution/test_scores.py::test_a_query_of_more_bits_than_there_are_planes_is_refused",
        ),
    ),
)
