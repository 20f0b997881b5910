"""What keeps the arithmetic the same on every machine, and which test notices its absence."""

from __future__ import annotations

import os

from attribution.exact.fused.kept import ASKED, INSTALLED
from tests.hardening.removal import Removal

BACKENDS = "attribution/exact/backends.py"
PRODUCTS = "attribution/exact/products.py"
ELEMENTARY = "attribution/exact/elementary.py"
QUANTISATION = "attribution/exact/quantisation.py"
_ADVERSARIAL = "tests/unit/attribution/test_exact_adversarial.py::"
_FORWARD = "tests/unit/attribution/test_model_forward.py::"
_INVARIANCES = "tests/unit/attribution/test_invariances.py::"
_MACHINES = "tests/machines/test_accelerator.py::"
_SELFCHECK = "tests/machines/test_selfcheck_command.py::"
_RECIPES = "tests/machines/test_gpu_recipes.py::"
_FUSED = "tests/unit/attribution/test_fused_kernels.py::"
_COMPILED = "tests/unit/attribution/test_fused_machine.py::"
_LIMBS = "tests/unit/attribution/test_fused_limbs.py::"
_LOOK = "tests/unit/attribution/test_first_look.py::"
_SCAN = "tests/unit/attribution/test_fused_scan.py::"
_ROWS = "tests/unit/attribution/test_narrow_rows.py::"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "copies that crowd others out of a first look",
        "attribution/first_look.py",
        "looks = np.where(short.counted & leading, _looks(query, short), 0)",
        "looks = np.where(short.counted, _looks(query, short), 0)",
        (f"{_LOOK}test_copies_that_do_not_lead_crowd_nobody_out",),
    ),
    Removal(
        "equal looks, of which any might be kept",
        "attribution/first_look.py",
        "equal[: count - len(above)]",
        "equal[len(above) - count :]",
        (f"{_LOOK}test_of_equal_looks_the_smaller_numbers_are_kept",),
    ),
    Removal(
        "a scan that reads what its shapes do not describe",
        "attribution/signs.py",
        "if signs.shape[1:] != (sum(widths),) or scales.shape != (rows, len(widths)):",
        "if False:",
        (f"{_SCAN}test_sizes_that_are_not_those_of_the_shapes_are_refused",),
    ),
    Removal(
        "chosen rows that are not there",
        "attribution/signs.py",
        "if chosen is not None and rows and not 0 <= chosen.min() <= chosen.max() < len(signs):",
        "if False:",
        (f"{_SCAN}test_chosen_rows_that_are_not_there_are_refused",),
    ),
    Removal(
        "an erased row that a first look keeps",
        "attribution/first_look.py",
        "looks = np.where(short.counted & leading, _looks(query, short), 0)",
        "looks = np.where(leading, _looks(query, short), 0)",
        (f"{_LOOK}test_an_erased_row_takes_nobodys_place_even_where_zeros_look_best",),
    ),
    Removal(
        "negative zeros: their sign differs between kernels",
        PRODUCTS,
        "return s.mul_(scale_a).mul_(scale_b).add_(0.0).to(home)",
        "return s.mul_(scale_a).mul_(scale_b).to(home)",
        (f"{_ADVERSARIAL}test_the_ends_of_the_range_and_both_zeros",),
    ),
    Removal(
        "binary32 limbs: sums longer than 4096 need more than 24 bits",
        PRODUCTS,
        "FP32_K_MAX = 1 << 12",
        "FP32_K_MAX = 1 << 20",
        (f"{_ADVERSARIAL}test_sums_of_small_limbs_longer_than_binary32_holds_are_exact",),
    ),
    Removal(
        "int8 limbs: sums beyond int32",
        PRODUCTS,
        "INT8_K_MAX = 1 << 17",
        "INT8_K_MAX = 1 << 20",
        (f"{_ADVERSARIAL}test_sums_of_one_sign_at_full_range_beyond_int32_are_exact",),
    ),
    Removal(
        "limbs combined in binary32 are rounded twice",
        PRODUCTS,
        "out += combine(torch.mm(left, right).double(), m, n)",
        "out += combine(torch.mm(left, right), m, n)",
        (f"{_ADVERSARIAL}test_sums_of_one_sign_are_rounded_once",),
    ),
    Removal(
        "limbs beyond 64 saturate kernels that add in 16 bits",
        PRODUCTS,
        "h = torch.mul(q, 0.0078125).round_()",
        "h = torch.mul(q, 0.0078125).floor_()",
        (f"{_ADVERSARIAL}test_limbs_stay_where_sixteen_bit_kernels_are_exact",),
    ),
    Removal(
        "sums too long for binary64 in one piece",
        PRODUCTS,
        "if a.shape[1] > FP64_K_MAX:",
        "if a.shape[1] > FP64_K_MAX and a.shape[1] % 2:",
        (f"{_ADVERSARIAL}test_every_piece_of_a_longer_sum_is_its_own_product",),
    ),
    Removal(
        "shapes that CUDA's integer product refuses",
        PRODUCTS,
        "left = functional.pad(left, (0, -k % 16, 0, max(32 - m, -m % 16)))",
        "left = functional.pad(left, (0, -k % 16))",
        (f"{_MACHINES}test_the_path_from_product_to_payment_needs_neither_the_cpus_place_nor_its_habits",),
    ),
    Removal(
        "binary32 weights: parts whose sums need more than 24 bits",
        "attribution/linear.py",
        "FP32_L1_MAX = 1 << 11",
        "FP32_L1_MAX = 1 << 14",
        (f"{_FORWARD}test_frozen_products_agree_over_backends_with_extreme_weights",),
    ),
    Removal(
        "numbers without a block fixed-point form",
        "attribution/exact/bits.py",
        "if m.numel() and not float(m.amax()) < MAGNITUDE_LIMIT:",
        "if m.numel() and float(m.amax()) == float('inf'):",
        (f"{_ADVERSARIAL}test_numbers_without_a_form_are_refused_on_either_side_in_any_place",),
    ),
    Removal(
        "an exponent shared over tokens",
        QUANTISATION,
        "    return torch.mul(x, scale.reciprocal()).round_(), scale\n",
        "    scale = scale.amax().expand_as(scale).contiguous()\n"
        "    return torch.mul(x, scale.reciprocal()).round_(), scale\n",
        (
            f"{_FORWARD}test_rows_do_not_depend_on_batch_order_or_later_tokens",
            f"{_INVARIANCES}test_rows_of_several_adapters_share_the_frozen_product_and_keep_their_bits",
        ),
    ),
    Removal(
        "values not folded into the probabilities: decoding differs from prefill",
        "attribution/attention.py",
        "q, scale = to_grid(p * v_scale, nonnegative=True)",
        "q, scale = to_grid(p * v_scale.amax(-1, keepdim=True), nonnegative=True)",
        ("tests/unit/attribution/test_generation.py::test_cached_decoding_equals_prefill_bit_for_bit",),
    ),
    Removal(
        "masked probabilities that are only small",
        "attribution/attention.py",
        "return scores if keep is None else scores.mul_(keep)",
        "return scores",
        (f"{_INVARIANCES}test_a_later_token_of_any_size_does_not_reach_an_earlier_one",),
    ),
    Removal(
        "torch's binary32 root, which is not IEEE's",
        ELEMENTARY,
        "return torch.sqrt(x.double()).float()",
        "return torch.sqrt(x)",
        ("tests/unit/attribution/test_exact_operations.py::test_only_permitted_operations_run",),
    ),
    Removal(
        "torch's exponential, which follows the instruction set",
        ELEMENTARY,
        "    return exp_(x.neg()).add_(1.0).reciprocal_()",
        "    return torch.exp(x.neg()).add_(1.0).reciprocal_()",
        (
            "tests/unit/attribution/test_exact_operations.py::test_only_permitted_operations_run",
            f"{_ADVERSARIAL}test_every_function_is_its_definition_in_plain_numbers",
        ),
    ),
    Removal(
        "ties broken as the library likes",
        ELEMENTARY,
        "return torch.where(tied, index, x.shape[-1]).amin(-1)",
        "return torch.where(tied, index, -1).amax(-1)",
        ("tests/unit/attribution/test_exact_functions.py::test_argmax_takes_the_lowest_of_equal_indices",),
    ),
    Removal(
        "sums of numbers that are not integers on one grid",
        "attribution/exact/reductions.py",
        "return x.double().mul_(grid.reciprocal()).round_().sum(-1, keepdim=True).mul_(grid)",
        "return x.double().mul_(grid.reciprocal()).sum(-1, keepdim=True).mul_(grid)",
        (
            "tests/property/test_exact_properties.py::test_sums_ignore_order",
            f"{_ADVERSARIAL}test_every_function_is_its_definition_in_plain_numbers",
        ),
    ),
    Removal(
        "division by a number, which CUDA does through the reciprocal (weights)",
        "attribution/whitening/weights.py",
        "mean = divide_(exact.fsum(own.float().flatten()), float(own.numel()))",
        "mean = exact.fsum(own.float().flatten()) / float(own.numel())",
        (f"{_MACHINES}test_divisors_are_tensors_on_the_accelerator",),
    ),
    Removal(
        "division by a number, which CUDA does through the reciprocal (magnitudes)",
        "attribution/signs.py",
        "divide_(exact.fsum(x.abs().flatten(1)), float(x[0].numel()))",
        "exact.fsum(x.abs().flatten(1)) / float(x[0].numel())",
        (f"{_MACHINES}test_divisors_are_tensors_on_the_accelerator",),
    ),
    Removal(
        "division by a number, which CUDA does through the reciprocal (angles)",
        "attribution/model.py",
        "divide_(i * -2.0, float(config.head_dim))",
        "(i * -2.0 / float(config.head_dim))",
        (f"{_MACHINES}test_divisors_are_tensors_on_the_accelerator",),
    ),
    Removal(
        "a tensor left on the CPU",
        "attribution/decoder.py",
        "rows = torch.arange(logits.shape[0], device=logits.device)\n    p, top",
        "rows = torch.arange(logits.shape[0])\n    weights = weights if weights is None else weights.cpu()\n    p, top",
        (f"{_MACHINES}test_the_path_from_product_to_payment_needs_neither_the_cpus_place_nor_its_habits",),
    ),
    Removal(
        "a binary32 backend on a GPU, where TF32 may round it",
        BACKENDS,
        "if _chosen is not None and PRODUCTS[_chosen][0] == device.type:",
        "if _chosen is not None:",
        (f"{_MACHINES}test_a_backend_chosen_for_the_cpu_is_not_used_on_a_gpu",),
    ),
    Removal(
        "a machine that flushes subnormal numbers",
        BACKENDS,
        '("underflow", torch.full((1, 3), 3.0 * 2.0**-75), torch.full((3, 1), 5.0 * 2.0**-68)),',
        "",
        (
            f"{_ADVERSARIAL}test_the_start_up_check_sees_a_machine_that_flushes_subnormal_numbers",
            f"{_SELFCHECK}test_a_worker_refuses_to_start_where_subnormal_numbers_are_flushed",
        ),
    ),
    Removal(
        "an oracle that the machine's own rounding mode reaches",
        "attribution/exact/oracle.py",
        "out[i, j] = float32_bits(value)",
        "out[i, j] = int((torch.tensor(value, dtype=torch.float32) + 0.0).view(torch.int32))",
        (f"{_ADVERSARIAL}test_the_start_up_check_sees_a_machine_that_flushes_subnormal_numbers",),
    ),
    Removal(
        "functions that nobody checks at the start",
        BACKENDS,
        "reports.extend(_check_functions(device) for device in devices())",
        "reports.extend(())",
        (
            f"{_SELFCHECK}test_a_worker_refuses_to_start_where_a_function_is_wrong",
            f"{_SELFCHECK}test_a_root_that_is_not_rounded_correctly_is_found",
        ),
    ),
    Removal(
        "a wrong backend that is used all the same",
        BACKENDS,
        "if strict and report.failed_case is not None:",
        "if strict and report.failed_case == '':",
        (
            "tests/unit/attribution/test_exact_backends.py::test_selfcheck_refuses_a_backend_that_rounds_wrongly",
        ),
    ),
    Removal(
        "a worker that does not check its machine",
        "attribution/machine.py",
        "    for report in _failures(reports, used):\n",
        "    for report in ():\n",
        (
            f"{_SELFCHECK}test_a_worker_refuses_to_start_on_a_machine_that_multiplies_wrongly",
            f"{_SELFCHECK}test_a_worker_refuses_to_start_where_subnormal_numbers_are_flushed",
        ),
    ),
    Removal(
        "a self-check that looks at no golden hash",
        "attribution/selfcheck.py",
        "if not problem and found != expected:",
        "if not problem and found != found:",
        (
            f"{_SELFCHECK}test_another_golden_hash_fails",
            f"{_SELFCHECK}test_a_wrong_bit_that_the_start_up_check_is_too_small_to_see_is_found",
        ),
    ),
    Removal(
        "a self-check that fails and exits with 0",
        "node/cli/selfcheck.py",
        "return Exit.OK if passed else Exit.FAILED",
        "return Exit.OK",
        (f"{_SELFCHECK}test_a_wrong_bit_in_one_backend_is_found_and_named",),
    ),
    Removal(
        "numbers without a block fixed-point form, in a row alone",
        "attribution/exact/bits.py",
        "if not m < MAGNITUDE_LIMIT:",
        "if m == float('inf'):",
        (f"{_ROWS}test_a_row_alone_is_refused_as_among_others",),
    ),
    Removal(
        "rows alone that are zero or tiny have the least exponent",
        "attribution/exact/bits.py",
        "return max(POWER_MIN, math.ldexp(1.0, math.frexp(m)[1] - 1)) if m else POWER_MIN",
        "return math.ldexp(1.0, max(math.frexp(m)[1], -120) - 1)",
        (f"{_ROWS}test_a_row_alone_is_quantised_as_among_others",),
    ),
    Removal(
        "decoding in binary64 where another backend was chosen",
        "attribution/generation_rows.py",
        'or chosen_backend() not in (None, "fp64")',
        "or chosen_backend() is NotImplemented",
        (f"{_ROWS}test_wide_groups_and_other_backends_take_the_common_way",),
    ),
    Removal(
        "one module's output reaching another module's columns",
        "attribution/generation_rows.py",
        "self.up[j * lora.rank : (j + 1) * lora.rank, i:k]",
        "self.up[j * lora.rank : (j + 1) * lora.rank, first:last]",
        (f"{_ROWS}test_decoding_row_by_row_is_the_whole_text_for_every_kind_of_base_and_adapter",),
    ),
    Removal(
        "a GPU devnet whose first validator never touched the GPU",
        "tests/machines/gpu_devnet.py",
        "if ran.get(name) != place",
        "if name not in ran",
        (f"{_RECIPES}test_a_first_validator_that_did_not_compute_on_the_gpu_is_a_difference",),
    ),
    Removal(
        "a GPU devnet in which every validator takes the GPU",
        "tests/machines/gpu_devnet.py",
        "attribution=first if position == 0 else CPU",
        "attribution=first if position == 0 else AttributionSection()",
        (f"{_RECIPES}test_each_validators_worker_is_told_its_place",),
    ),
    Removal(
        "a GPU check that forgets what failed",
        "tests/machines/gpu.py",
        "return 1 if failed else 0",
        "return 0",
        (f"{_RECIPES}test_every_part_of_the_check_runs_and_counts",),
    ),
    Removal(
        "a score that no query may see refusing a text that decoding accepts",
        "attribution/attention.py",
        'scores.masked_fill_(hidden, float("-inf"))',
        'scores.add_(torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")))',
        (f"{_FUSED}test_a_score_beyond_binary32_that_no_query_may_see_refuses_nothing",),
    ),
    Removal(
        "a gradient times a later value refusing a text",
        "attribution/attention.py",
        "    ds.view(heads, t, t).masked_fill_(saved.hidden, 0.0)\n",
        "",
        (f"{_FUSED}test_a_score_beyond_binary32_that_no_query_may_see_refuses_nothing",),
    ),
    Removal(
        "kernels that were never held against the torch paths",
        "attribution/exact/fused/kept.py",
        '(place / f"{_PREFIX}{digest()}" / _COMPLETE).is_file() for place in places()',
        '(place / f"{_PREFIX}{digest()}").is_dir() for place in places()',
        (f"{_COMPILED}test_kernels_serve_only_once_all_were_compiled_and_found_right",),
    ),
    Removal(
        "machine code of other sources",
        "attribution/exact/fused/kept.py",
        'hasher.update(path.name.encode() + b"\\0" + path.read_bytes())',
        "hasher.update(path.name.encode())",
        (f"{_COMPILED}test_a_changed_source_or_setting_has_another_digest",),
    ),
    Removal(
        "machine code of every source there ever was",
        "attribution/exact/fused/kept.py",
        "for _, folder in dated[_OLD_KEPT_MAX:]:",
        "for _, folder in dated[len(dated) :]:",
        (f"{_COMPILED}test_the_folder_of_machine_code_is_named_by_the_sources_and_old_ones_go",),
    ),
    Removal(
        "a kernel that cannot be compiled ending the process",
        BACKENDS,
        "        except Exception:\n",
        "        except (RuntimeError, ImportError):\n",
        (f"{_COMPILED}test_a_kernel_that_cannot_be_compiled_is_left_out",),
    ),
)
KERNELS: tuple[Removal, ...] = (
    Removal(
        "sums of 14 by 7 bits beyond int32",
        "attribution/exact/fused/products.py",
        "PAIRS_7 = 2047",
        "PAIRS_7 = 1 << 15",
        (f"{_FUSED}test_sums_of_one_sign_beyond_int32_are_exact",),
    ),
    Removal(
        "sums of 14 by 14 bits beyond int32",
        "attribution/exact/fused/products.py",
        "PAIRS_14 = 15",
        "PAIRS_14 = 16",
        (f"{_FUSED}test_sums_of_one_sign_beyond_int32_are_exact",),
    ),
    Removal(
        "low-rank sums of 14 by 14 bits beyond int32",
        "attribution/exact/fused/products.py",
        "if alone[panel] >= 0 and end - begin <= PAIRS_14:",
        "if alone[panel] >= 0:",
        (f"{_FUSED}test_low_rank_sums_of_one_sign_beyond_int32_are_exact",),
    ),
    Removal(
        "a sum rounded before it is scaled where that is two roundings",
        "attribution/exact/fused/limbs.py",
        "return np.array([2.0**-126 / least, 2.0**96 / most])",
        "return np.array([0.0, np.inf])",
        (f"{_LIMBS}test_rows_are_rounded_before_they_are_scaled_only_where_that_is_one_rounding",),
    ),
    Removal(
        "limbs joined beyond int32",
        "attribution/exact/fused/limbs.py",
        "if width > SHORT_WIDTH_MAX or not scales.size:",
        "if not scales.size:",
        (f"{_LIMBS}test_sums_of_one_sign_up_to_and_beyond_int32_are_exact",),
    ),
    Removal(
        "one row's sums beyond int32",
        "attribution/exact/fused/layers.py",
        "if x.scales.size == 1 and x.width <= limbs.SHORT_WIDTH_MAX:",
        "if x.scales.size == 1:",
        (f"{_LIMBS}test_sums_of_one_sign_up_to_and_beyond_int32_are_exact",),
    ),
    Removal(
        "a unit that the operating system does not grant: the process would be killed",
        "attribution/exact/fused/amx.py",
        "return refused == 0",
        "return True",
        (f"{_LIMBS}test_the_unit_is_used_where_compiler_and_system_both_have_it",),
    ),
    Removal(
        "a unit that the compiler was told not to use",
        "attribution/exact/fused/amx.py",
        "if not features() >= _NEEDED:",
        "if False:",
        (f"{_LIMBS}test_the_unit_is_used_where_compiler_and_system_both_have_it",),
    ),
    Removal(
        "products and sums contracted, sums reordered",
        "attribution/exact/fused/compiling.py",
        "fastmath=False",
        "fastmath=True",
        (f"{_COMPILED}test_the_exponential_rounds_each_operation_where_contraction_would_show",),
    ),
    Removal(
        "numbers without a form in kernels",
        "attribution/exact/fused/grids.py",
        "    if top >= LIMIT_BITS:\n        return np.float32(-1.0)\n",
        "",
        (f"{_FUSED}test_one_number_without_a_form_refuses_its_row_in_every_kernel",),
    ),
    Removal(
        "kernels that no start looks at",
        BACKENDS,
        "            reports.append(_check_kernels())\n",
        "            pass\n",
        (f"{_COMPILED}test_a_wrong_kernel_is_found_at_the_start_and_refuses_the_machine",),
    ),
    Removal(
        "high digits that do not fit a byte together",
        "attribution/exact/fused/scanning.py",
        "np.arange(0, len(together), CHUNK)) < 1 << 8",
        "np.arange(0, len(together), CHUNK)) < 1 << 10",
        (f"{_SCAN}test_sums_of_one_sign_fit_their_digits_and_words",),
    ),
    Removal(
        "digits' sums beyond 16 bits",
        "attribution/exact/fused/tables.py",
        "POSITIONS_MAX = 128",
        "POSITIONS_MAX = 512",
        (f"{_SCAN}test_sums_of_one_sign_fit_their_digits_and_words",),
    ),
    Removal(
        "a query's largest magnitude, which two digits do not hold",
        "attribution/exact/fused/scanning.py",
        "MAGNITUDE_MAX = (1 << 13) - 1",
        "MAGNITUDE_MAX = 1 << 13",
        (f"{_SCAN}test_sums_of_one_sign_fit_their_digits_and_words",),
    ),
    Removal(
        "rows and bytes that are not there",
        "attribution/exact/fused/scanning.py",
        "if count == LANES and stop - start == CHUNK:",
        "if count == LANES or stop - start == CHUNK:",
        (f"{_SCAN}test_nothing_beyond_the_last_row_is_read",),
    ),
    Removal(
        "a limb of a query that no byte holds",
        "attribution/exact/fused/masked.py",
        "LIMB_BITS = 7",
        "LIMB_BITS = 8",
        (f"{_SCAN}test_limbs_of_every_query_are_bytes_that_give_it_back",),
    ),
    Removal(
        "bits that belong to the bytes before a row's last",
        "attribution/exact/fused/masked.py",
        "            mask = mask if down is None else builder.lshr(mask, down)\n",
        "",
        (f"{_SCAN}test_the_compiled_scan_is_the_plain_one",),
    ),
    Removal(
        "sums of a look beyond 16 bits",
        "attribution/exact/fused/tables.py",
        "LOOKED_POSITIONS_MAX = 256",
        "LOOKED_POSITIONS_MAX = 512",
        (f"{_SCAN}test_looks_by_the_kernel_are_those_that_are_counted",),
    ),
    Removal(
        "a look's integers that no byte holds",
        "attribution/first_look.py",
        "LOOKED_SHIFT, LOOKED_MAX = 8, 31",
        "LOOKED_SHIFT, LOOKED_MAX = 8, 33",
        (f"{_SCAN}test_looks_by_the_kernel_are_those_that_are_counted",),
    ),
    Removal(
        "a block of a row that has fewer bytes",
        "attribution/exact/fused/scanning.py",
        "            if size < BLOCK_BYTES:\n",
        "            if size < 0:\n",
        (f"{_SCAN}test_nothing_before_the_first_row_is_read",),
    ),
)
"""Hardenings of what is compiled: each removal makes other machine code, so that these are looked at where that was asked for."""

if INSTALLED and os.environ.get(ASKED) == "1":
    REMOVALS += KERNELS
