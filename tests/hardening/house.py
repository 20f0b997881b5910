"""The directions of imports and the strictness about warnings."""

from tests.hardening.removal import Removal

CONTRACTS = ("tests/unit/test_architecture.py::test_every_import_goes_the_way_the_architecture_says",)

REMOVALS = (
    Removal(
        "consensus that reads a clock",
        "consensus/replica.py",
        "from typing import assert_never\n",
        "import time\nfrom typing import assert_never\n",
        CONTRACTS,
    ),
    Removal(
        "attribution that knows consensus",
        "attribution/merkle.py",
        "from blake3 import blake3\n",
        "import consensus.codec\nfrom blake3 import blake3\n",
        CONTRACTS,
    ),
    Removal(
        "a ledger that reads a disk",
        "node/ledger/execute.py",
        "from dataclasses import replace\n",
        "import pathlib\nfrom dataclasses import replace\n",
        CONTRACTS,
    ),
    Removal(
        "libp2p outside its room",
        "node/client.py",
        "import itertools\n",
        "import itertools\nimport libp2p\n",
        CONTRACTS,
    ),
    Removal(
        "warnings that pass unread",
        "pyproject.toml",
        '    "error",\n',
        "",
        (
            "tests/unit/test_house.py::test_a_warning_from_our_modules_is_an_error",
            "tests/unit/test_house.py::test_a_warning_filter_names_a_third_party_module_and_never_ours",
        ),
    ),
    Removal(
        "other examples at every run of CI",
        "tests/profiles.py",
        "derandomize=True, ",
        "",
        ("tests/unit/test_house.py::test_continuous_integration_looks_at_the_same_examples_every_time",),
    ),
)
