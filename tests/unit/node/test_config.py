"""Configuration: precedence, bounds, refusals by name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from node.config import CONFIG_BYTES_MAX, Config, load_config, render_toml
from node.errors import ConfigInvalid

EXAMPLE = Path(__file__).parents[3] / "configs" / "node.toml"
PEER = "/ip4/127.0.0.1/tcp/4001/p2p/16Uiu2HAmJ7kq3b8nGkTzS4wQ9fYp6Zt2xR5vL1mN8cD3eH7aBcDe"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(None, {}) == Config()


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '[rpc]\nport = 1\nbatch_max = 1\nconnections_max = 1\n[log]\nlevel = "debug"\n')
    environment = {"OPENLEDGER_RPC_PORT": "2", "OPENLEDGER_RPC_BATCH_MAX": "2", "PATH": "/bin"}
    config = load_config(path, environment, {"rpc.port": "3"})
    assert (config.rpc.port, config.rpc.batch_max, config.rpc.connections_max) == (3, 2, 1)
    assert config.log.level == "debug"
    assert config.rpc.body_bytes_max == 20 * 2**20


def test_rendering_and_reading_give_an_equal_configuration(tmp_path: Path) -> None:
    overrides: dict[str, object] = {
        "node.moniker": 'a "quoted\\" name',
        "node.validator": True,
        "network.mesh_peers": [PEER, PEER],
        "rpc.port": 0,
    }
    config = load_config(None, {}, overrides)
    assert load_config(write(tmp_path, render_toml(config)), {}) == config


@pytest.mark.parametrize("path", ["/run/\U0001f511/passphrase", "/zwölf/\u2028", "C:\\path", '"quoted"'])
def test_a_path_in_any_script_is_rendered_as_toml(tmp_path: Path, path: str) -> None:
    config = load_config(None, {}, {"keys.passphrase_file": path})
    file = tmp_path / "config.toml"
    file.write_text(render_toml(config), encoding="utf-8")
    assert load_config(file, {}) == config


def test_the_example_is_the_defaults_and_names_every_key() -> None:
    assert load_config(EXAMPLE, {}) == Config()
    text = EXAMPLE.read_text()
    for section in fields(Config):
        assert f"[{section.name}]" in text
        for key in fields(getattr(Config(), section.name)):
            assert f"\n{key.name} = " in text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[rpc]\nports = 1", "rpc.ports"),
        ("[rcp]\nport = 1", "rcp"),
        ("port = 1", "port"),
        ("[rpc]\nport = 70000", "rpc.port"),
        ("[rpc]\nport = -1", "rpc.port"),
        ('[rpc]\nport = "7550"', "rpc.port"),
        ("[rpc]\nport = true", "rpc.port"),
        ("[rpc]\nport = 1.0", "rpc.port"),
        ("[node]\nvalidator = 1", "node.validator"),
        ('[node]\nmoniker = ""', "node.moniker"),
        ('[node]\nmoniker = "two\\nlines"', "node.moniker"),
        ('[attribution]\ndevice = "tpu"', "attribution.device"),
        ('[attribution]\nbackend = "bf16"', "attribution.backend"),
        ("[consensus]\nheartbeat_ms = 2001", "consensus.heartbeat_ms"),
        ('[network]\nmesh_peers = "x"', "network.mesh_peers"),
        ('[network]\nmesh_peers = ["/ip4/127.0.0.1/tcp/1"]', "network.mesh_peers"),
        ("[network]\nmesh_peers = [1]", "network.mesh_peers"),
        ('[network]\npeer_ids_allowed = ["0OIl"]', "network.peer_ids_allowed"),
        ('[log]\nlevel = "loud"', "log.level"),
        ("[rpc.port]\nx = 1", "rpc.port"),
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_refused_by_name(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text), {})
    assert caught.value.key == key
    assert caught.value.expected


@pytest.mark.parametrize("text", ["[rpc", "[rpc]\nport = 1\nport = 2", "\x00", "x" * (CONFIG_BYTES_MAX + 1)])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path, {})
    assert caught.value.key == str(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="a readable file"):
        load_config(tmp_path / "absent.toml", {})


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("OPENLEDGER_RPC_PROT", "1", "rpc.prot"),
        ("OPENLEDGER_RPC_PORT", "0x10", "rpc.port"),
        ("OPENLEDGER_RPC_PORT", "", "rpc.port"),
        ("OPENLEDGER_NODE_VALIDATOR", "yes", "node.validator"),
        ("OPENLEDGER_ATTRIBUTION_DEVICE", "gpu", "attribution.device"),
    ],
)
def test_environment_variables_of_a_section_are_checked_like_the_file(
    name: str, value: str, key: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(None, {name: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[rpc]\nprot = 1", "did you mean rpc.port?"),
        ("[rpc]\nlevel = 1", "did you mean log.level?"),
        ("[rcp]\nport = 1", "did you mean rpc?"),
        ("port = 1", "did you mean rpc.port?"),
        ("[rpc]\nzzzzzz = 1", "one of host, port"),
        ("[zzzzzz]\nport = 1", "one of node, keys, signer, rpc"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_or_else_with_all(
    tmp_path: Path, text: str, hint: str
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text), {})
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["OPENLEDGER_RCP_PORT", "OPENLEDGER_NETWROK_PEERS_MAX", "OPENLEDGER_KEY_X"])
def test_a_variable_that_nearly_names_a_section_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="did you mean OPENLEDGER_") as caught:
        load_config(None, {name: "1"})
    assert caught.value.key == name


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "[rpc]\nport = " + "9" * 5000, "[rpc]\nport = 0x" + "f" * 6000, "a = 1979-99-99"],
    ids=["nested", "long-decimal", "long-hex", "date"],
)
def test_what_the_toml_reader_itself_trips_over_is_refused_in_a_short_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(write(tmp_path, text), {})
    assert len(str(caught.value)) < 1000


def test_lists_in_environment_and_flags_are_separated_by_commas() -> None:
    config = load_config(
        None, {"OPENLEDGER_NETWORK_MESH_PEERS": f"{PEER}, {PEER}"}, {"network.gossip_peers": ""}
    )
    assert config.network.mesh_peers == (PEER, PEER)
    assert config.network.gossip_peers == ()


def test_variables_that_are_not_configuration_are_left_alone() -> None:
    others = ("HOME", "URL", "PASSPHRASE", "PASSPHRASE_FILE", "TRACEBACK", "SOMETHING_ELSE")
    assert load_config(None, {f"OPENLEDGER_{name}": "/x" for name in others}) == Config()


@pytest.mark.parametrize("name", ["rpc", "rpc.nothing", ".port", "nothing.port"])
def test_overrides_that_name_no_key_are_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid):
        load_config(None, {}, {name: "1"})
