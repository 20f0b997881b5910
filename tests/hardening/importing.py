"""What keeps files that strangers wrote from doing harm, or from being read as something else."""

from __future__ import annotations

from tests.hardening.removal import Removal

ARCHITECTURE = "attribution/importing/architecture.py"
DIRECTORY = "attribution/importing/directory.py"
FILES = "attribution/importing/files.py"
PEFT = "attribution/importing/peft.py"
SHARDS = "attribution/importing/shards.py"
TENSORS = "attribution/importing/tensor_file.py"
TEXT = "attribution/importing/text.py"
_TESTS = "tests/unit/attribution/importing/test_importing_"
_HOSTILE = f"{_TESTS}hostile.py::"
_PEFT = f"{_TESTS}peft.py::"
_TEXT = f"{_TESTS}text.py::"
_ARITHMETIC = f"{_TESTS}arithmetic.py::"
_LIES = f"{_HOSTILE}test_headers_that_lie_are_refused"
_OPTIONS = f"{_HOSTILE}test_options_that_change_what_is_computed_are_refused_by_name"
_ADAPTER_OPTIONS = f"{_PEFT}test_options_that_change_what_is_computed_are_refused_by_name"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a pipe or a device in a file's place",
        FILES,
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        (f"{_HOSTILE}test_pipes_devices_and_folders_in_place_of_files_are_refused_at_once",),
    ),
    Removal(
        "a file that is larger than its kind can be",
        FILES,
        "if size > bytes_max:",
        "if False:",
        (f"{_HOSTILE}test_configurations_that_are_not_one_json_object_are_refused",),
    ),
    Removal(
        "a folder without end",
        FILES,
        "if len(names) > NAMES_MAX:",
        "if False:",
        (f"{_HOSTILE}test_a_folder_of_too_many_names_is_refused",),
    ),
    Removal(
        "a key that says two things",
        FILES,
        "if len(found) != len(pairs):",
        "if False:",
        (f"{_HOSTILE}test_one_object_is_one_meaning",),
    ),
    Removal(
        "JSON nested without end",
        FILES,
        "except (ValueError, RecursionError):",
        "except ValueError:",
        (f"{_HOSTILE}test_configurations_that_are_not_one_json_object_are_refused",),
    ),
    Removal(
        "an index that leads out of its folder",
        SHARDS,
        "if not isinstance(shard, str) or _SHARD_NAME.fullmatch(shard) is None:",
        "if not isinstance(shard, str):",
        (f"{_HOSTILE}test_an_index_that_leads_elsewhere_is_refused",),
    ),
    Removal(
        "an index that places a tensor where it is not",
        SHARDS,
        "if placed is not None and placed.get(name) != shard:",
        "if False:",
        (f"{_HOSTILE}test_an_index_that_leads_elsewhere_is_refused",),
    ),
    Removal(
        "two sets of weights in one directory",
        SHARDS,
        "if WHOLE in names and INDEX in names:",
        "if False:",
        (f"{_HOSTILE}test_two_ways_to_the_weights_are_refused",),
    ),
    Removal(
        "a header longer than headers are",
        TENSORS,
        "if not 2 <= length <= min(HEADER_BYTES_MAX, size - 8):",
        "if not 2 <= length <= size - 8:",
        (f"{_HOSTILE}test_a_header_longer_than_any_model_needs_is_refused",),
    ),
    Removal(
        "tensors that overlap or leave gaps",
        TENSORS,
        "if entry.start != at:",
        "if False:",
        (_LIES,),
    ),
    Removal(
        "bytes after the last tensor",
        TENSORS,
        "if at != end:",
        "if at > end:",
        (_LIES,),
    ),
    Removal(
        "a shape that is not the size of its bytes",
        TENSORS,
        "or stop - start != prod(shape) * DTYPES[dtype][1]",
        "or False",
        (_LIES,),
    ),
    Removal(
        "an option of a model that nobody here knows",
        ARCHITECTURE,
        'raise ImportRefused(f"config.json: {shown(key)} is not an option of {kind} that is known here")',
        "continue",
        (_OPTIONS,),
    ),
    Removal(
        "0 for False, True for 1",
        ARCHITECTURE,
        "if not any(type(value) is type(one) and value == one for one in allowed):",
        "if value not in allowed:",
        (_OPTIONS,),
    ),
    Removal(
        "frequencies given twice, and differently",
        ARCHITECTURE,
        "if len(thetas) > 1 or len(set(scalings)) > 1:",
        "if False:",
        (_OPTIONS,),
    ),
    Removal(
        "a head that is stored although it is tied",
        DIRECTORY,
        "            _check_tied(weights)",
        "            continue",
        (f"{_HOSTILE}test_a_tied_head_that_is_stored_must_be_the_embedding",),
    ),
    Removal(
        "a model larger than a base can be, of holes",
        DIRECTORY,
        "if size > FILE_BYTES_MAX:",
        "if False:",
        (f"{_HOSTILE}test_a_model_larger_than_a_base_can_be_is_refused_before_a_weight_is_read",),
    ),
    Removal(
        "a tokenizer that cuts every text",
        TEXT,
        "inner.no_truncation()",
        "pass",
        (f"{_TEXT}test_a_file_cannot_cut_or_pad_the_text",),
    ),
    Removal(
        "a tokenizer of another model",
        TEXT,
        "if ids and max(ids) >= vocabulary:",
        "if False:",
        (f"{_TEXT}test_ids_outside_the_models_vocabulary_are_refused",),
    ),
    Removal(
        "an option of an adapter that nobody here knows",
        PEFT,
        'raise ImportRefused(f"{CONFIG}: {shown(key)} is not an option that is known here")',
        "continue",
        (_ADAPTER_OPTIONS,),
    ),
    Removal(
        "modules that PEFT would leave out silently",
        PEFT,
        "    _check_targets(values, [m.name for m in modules], layers)",
        "    pass",
        (_ADAPTER_OPTIONS,),
    ),
    Removal(
        "products of 14 by 14 bits in binary32 need more than 24",
        "attribution/linear.py",
        'return product_fp32(q, weights) if family == "fp32" else product_int8(q, weights)',
        'return torch.mm(q, weights).double() if family == "fp32" else product_int8(q, weights)',
        (f"{_ARITHMETIC}test_products_with_weights_of_14_bits_are_exact_at_the_extremes",),
    ),
    Removal(
        "two adapters of one hash and different scales",
        "attribution/adapter.py",
        """header = f"{self.rank} {self.alpha}{' rslora' if self.rslora else ''}\"""",
        'header = f"{self.rank} {self.alpha}"',
        (f"{_ARITHMETIC}test_rslora_scales_by_the_root_of_the_rank_and_is_hashed",),
    ),
    Removal(
        "integers of 14 bits beyond the bound that products rely on",
        "attribution/model.py",
        "if int(x.min()) < -limit or int(x.max()) > limit:",
        "if False:",
        (f"{_ARITHMETIC}test_tensors_out_of_their_bounds_are_refused",),
    ),
)
