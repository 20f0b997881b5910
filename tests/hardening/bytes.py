"""Bytes: one form for each value, sizes and counts before decoding, kinds that cannot be taken for one another."""

from tests.hardening.removal import Removal

CODEC = "consensus/codec.py"
CODEC_TESTS = "tests/unit/consensus/test_codec.py"
FORMS = f"{CODEC_TESTS}::test_every_first_byte_and_every_width_of_header_is_read_in_its_shortest_form_alone"
OVER = "tests/fuzz/test_limits.py::test_a_byte_over_the_limit_is_refused_for_its_size_without_being_decoded"
LEAVES = "tests/fuzz/test_fuzz.py::test_no_field_takes_a_boolean_for_an_integer_or_a_value_of_another_type"
READER = "tests/vectors/test_vectors.py::test_a_reader_made_from_the_documents_finds_the_same_preimage_digest_and_signature"
CHECKED = "tests/vectors/test_vectors.py::test_the_code_computes_exactly_what_the_files_hold"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "a second encoding of a value: what was read is not compared with what is written",
        CODEC,
        "if _pack(obj) != data:",
        "if False:",
        (FORMS, f"{CODEC_TESTS}::test_no_form_is_read_inside_an_array_that_is_not_read_alone"),
    ),
    Removal(
        "maps, floats and extension types are let through",
        CODEC,
        "else _REFUSED\n",
        "else 1\n",
        (f"{CODEC_TESTS}::test_no_form_is_read_inside_an_array_that_is_not_read_alone[long]",),
    ),
    Removal(
        "bytes are decoded before their size is looked at",
        CODEC,
        "if len(data) > bytes_max:",
        "if False:",
        (
            f"{CODEC_TESTS}::test_a_byte_more_than_allowed_is_refused_unread",
            f"{OVER}[message]",
            f"{OVER}[records]",
        ),
    ),
    Removal(
        "headers that lie make room for values that are not there",
        CODEC,
        "    if not short:\n",
        "    if False:\n",
        (
            f"{CODEC_TESTS}::test_headers_that_lie_inside_one_another_take_no_memory",
            "tests/fuzz/test_fuzz.py::test_what_was_found_once_stays_mended[message--nested-headers]",
            "tests/fuzz/test_fuzz.py::test_what_was_found_once_stays_mended[records--nested-headers]",
        ),
    ),
    Removal(
        "arrays are built uncounted: a byte each on the wire, ninety in memory",
        CODEC,
        "if arrays > ARRAYS_MAX:",
        "if False:",
        (f"{CODEC_TESTS}::test_arrays_are_counted_before_they_are_built",),
    ),
    Removal(
        "values are built uncounted",
        CODEC,
        "if count > elements_max:",
        "if False:",
        (f"{CODEC_TESTS}::test_values_are_counted_before_they_are_built", f"{CODEC_TESTS}::test_limits"),
    ),
    Removal(
        "nesting without end",
        CODEC,
        "if len(outer) > DEPTH_MAX:",
        "if False:",
        (f"{CODEC_TESTS}::test_limits",),
    ),
    Removal(
        "a short form that is not allowed is read all the same",
        CODEC,
        "    if short:\n        _check(obj)\n",
        "",
        (FORMS,),
    ),
    Removal(
        "text that is not UTF-8 is read as something else",
        CODEC,
        "msgpack.unpackb(data, raw=False, use_list=True)",
        'msgpack.unpackb(data, raw=False, use_list=True, unicode_errors="replace")\n        return obj',
        (f"{CODEC_TESTS}::test_text_that_is_not_utf8_is_refused",),
    ),
    Removal(
        "what has no canonical form is written",
        CODEC,
        "    _check(obj)\n    try:",
        "    try:",
        (f"{CODEC_TESTS}::test_what_has_no_canonical_form_is_not_encoded",),
    ),
    Removal(
        "a boolean is taken for an integer in what consensus reads",
        "consensus/fields.py",
        "if type(obj) is not int or not 0 <= obj <= U64_MAX:",
        "if not isinstance(obj, int) or not 0 <= obj <= U64_MAX:",
        (f"{LEAVES}[message]", f"{LEAVES}[block]"),
    ),
    Removal(
        "a negative integer is taken for an unsigned one in what consensus reads",
        "consensus/fields.py",
        "if type(obj) is not int or not 0 <= obj <= U64_MAX:",
        "if type(obj) is not int or not obj <= U64_MAX:",
        (f"{LEAVES}[message]",),
    ),
    Removal(
        "a boolean is taken for an integer in what the ledger reads",
        "node/ledger/fields.py",
        "if type(value) is bool or not isinstance(value, int) or not minimum <= value <= maximum:",
        "if not isinstance(value, int) or not minimum <= value <= maximum:",
        (f"{LEAVES}[transaction]", f"{LEAVES}[batch]"),
    ),
    Removal(
        "a boolean or a negative is taken for a height in frames, requests and gossip",
        "node/wire.py",
        "return all(type(value) is int and value >= 0 for value in values)",
        "return True",
        (f"{LEAVES}[announcement]", f"{LEAVES}[blob-request]", f"{LEAVES}[storage-receipt]"),
    ),
    Removal(
        "a frame's body is awaited before its announced length is looked at",
        "node/network/framing.py",
        "if not 1 <= length <= self._payload_bytes_max + 1:",
        "if not 1 <= length:",
        ("tests/fuzz/test_limits.py::test_a_frame_over_the_limit_is_refused_by_its_header",),
    ),
    Removal(
        "a hash of one kind is one of another",
        "consensus/digest.py",
        'prefix = b"openledger/" + kind.encode() + b"/v1\\0"',
        'prefix = b"openledger/v1\\0"',
        (CHECKED, f"{CODEC_TESTS}::test_digests_are_separated_by_kind_and_chain"),
    ),
    Removal(
        "a signature of one chain is valid on another",
        "consensus/digest.py",
        "prefix + chain_id + data",
        "prefix + data",
        (CHECKED, f"{CODEC_TESTS}::test_digests_are_separated_by_kind_and_chain"),
    ),
    Removal(
        "what a vote signs changes unnoticed",
        "consensus/verify.py",
        'digest("vote", encode((epoch, round_, block_id, parent_id, parent_round)), chain_id)',
        'digest("vote", encode((epoch, round_, block_id, parent_id)), chain_id)',
        (CHECKED,),
    ),
    Removal(
        "a kind is hashed that no document states and no vector holds",
        "node/storage/blobs.py",
        'return digest("blob", data)',
        'return digest("blobs", data)',
        (
            CHECKED,
            "tests/vectors/test_vectors.py::test_every_kind_that_the_code_hashes_is_documented_and_has_a_vector",
        ),
    ),
    Removal(
        "the documents state another order of fields than the code hashes",
        "docs/formats.md",
        "| `vote` | yes | array | epoch, round, block_id, parent_id, parent_round |",
        "| `vote` | yes | array | epoch, round, parent_id, block_id, parent_round |",
        (READER,),
    ),
    Removal(
        "the documents state another limit than the code keeps",
        "node/ledger/batch.py",
        "BATCH_BYTES_MAX = 512 << 10",
        "BATCH_BYTES_MAX = 513 << 10",
        ("tests/fuzz/test_limits.py::test_the_documents_state_the_limits_of_the_code",),
    ),
    Removal(
        "an adapter's file is read in more than one form",
        "attribution/adapter.py",
        "if adapter_to_bytes(adapter) != data:",
        "if False:",
        (
            "tests/fuzz/test_fuzz.py::test_valid_inputs_are_read_and_mutated_ones_are_refused_or_canonical[adapter]",
        ),
    ),
    Removal(
        "an index's header is read in more than one form",
        "attribution/index.py",
        "if header.row_bytes != row_bytes or header.encode() != data:",
        "if header.row_bytes != row_bytes:",
        (
            "tests/fuzz/test_fuzz.py::test_valid_inputs_are_read_and_mutated_ones_are_refused_or_canonical[index-header]",
        ),
    ),
    Removal(
        "adapters larger than a blob can be are parsed",
        "attribution/adapter.py",
        "if len(data) > bytes_max:",
        "if False:",
        (f"{OVER}[adapter]",),
    ),
    Removal(
        "a configuration nested without end ends whoever opens the base",
        "attribution/config.py",
        "except (ValueError, RecursionError):",
        "except ValueError:",
        (
            "tests/fuzz/test_fuzz.py::test_what_was_found_once_stays_mended[model-config--nested]",
            "tests/fuzz/test_fuzz.py::test_what_was_found_once_stays_mended[base--nested-configuration]",
        ),
    ),
)
