"""A node's configuration: TOML into frozen dataclasses, every key typed and bounded, unknown keys refused by name.

Order: built-in defaults < ``HOME/config.toml`` < environment (``OPENLEDGER_SECTION_KEY``) < command-line flags.
What all nodes must agree on is not here but in the genesis (`node.ledger.genesis`).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from node.errors import ConfigInvalid

ENVIRONMENT_PREFIX = "OPENLEDGER_"
CONFIG_BYTES_MAX = 256 * 1024
_LIST_LENGTH_MAX = 256
_TEXT_LENGTH_MAX = 512
_HOUR_MS = 3_600_000


def _integer(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *values: str) -> Any:
    return field(default=default, metadata={"values": values})


def _text(default: str, pattern: str, meaning: str) -> Any:
    return field(default=default, metadata={"pattern": pattern, "meaning": meaning})


def _texts(pattern: str, meaning: str) -> Any:
    return field(default=(), metadata={"pattern": pattern, "meaning": meaning})


_HOST = r"[A-Za-z0-9.:_-]{1,253}"
_MULTIADDR = r"(/[A-Za-z0-9.:_-]+)+/p2p/[1-9A-HJ-NP-Za-km-z]{32,128}"
_MULTIADDR_MEANING = "a multiaddr that ends in /p2p/PEER_ID, such as /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo..."
_PEER_ID = r"[1-9A-HJ-NP-Za-km-z]{32,128}"


# No control characters, and nothing that UTF-8 cannot say: it stands in config.toml.
_PATH = r"[^\x00-\x1f\x7f\ud800-\udfff]{0,512}"


@dataclass(frozen=True, slots=True)
class NodeSection:
    """``[node]``: who this node is."""

    moniker: str = _text("node", r"[\x20-\x7e]{1,64}", "1 to 64 printable ASCII characters")
    validator: bool = False


@dataclass(frozen=True, slots=True)
class KeysSection:
    """``[keys]``: the file with the passphrase of encrypted node keys; empty: none. A relative path starts at HOME."""

    passphrase_file: str = _text("", _PATH, "a file's path, at most 512 characters")


@dataclass(frozen=True, slots=True)
class SignerSection:
    """``[signer]``: the socket of `openledger signer`, which holds the consensus key instead of HOME/keys; empty: none.

    A relative path starts at HOME. ``public_key`` is the key that must answer there, ``uid`` the user id that the signer
    runs as where that is not the daemon's.
    """

    socket: str = _text("", _PATH, "a socket's path, at most 512 characters")
    public_key: str = _text(
        "", r"([0-9a-f]{64})?", "64 lowercase hex digits, as `openledger signer status` shows"
    )
    uid: str = _text("", r"[0-9]{0,10}", "a user id, or nothing for this process's own")


@dataclass(frozen=True, slots=True)
class RpcSection:
    """``[rpc]``: the HTTP server. Port 0 lets the system choose. Bound to loopback unless told otherwise.

    ``calls_per_second``, ``calls_burst`` and ``connections_per_address_max`` hold for each client address, those of this
    machine only with ``limit_loopback``; ``calls_per_second = 0`` turns the rate limit off.
    """

    host: str = _text("127.0.0.1", _HOST, "a host name or address")
    port: int = _integer(7550, 0, 65535)
    body_bytes_max: int = _integer(20 * 2**20, 1024, 256 * 2**20)
    connections_max: int = _integer(256, 1, 65536)
    requests_concurrent_max: int = _integer(64, 1, 4096)
    batch_max: int = _integer(50, 1, 1000)
    request_timeout_ms: int = _integer(30_000, 100, _HOUR_MS)
    idle_timeout_ms: int = _integer(20_000, 100, _HOUR_MS)
    calls_per_second: int = _integer(50, 0, 1_000_000)
    calls_burst: int = _integer(500, 1, 1_000_000)
    connections_per_address_max: int = _integer(64, 1, 65536)
    limit_loopback: bool = False
    event_subscribers_max: int = _integer(32, 0, 4096)
    event_resume_blocks_max: int = _integer(1000, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class NetworkSection:
    """``[network]``: libp2p. ``mesh_peers`` are the validators met over direct streams, ``gossip_peers`` full nodes.

    ``peer_ids_allowed`` admits further peers than those named in either list.
    """

    listen_host: str = _text("127.0.0.1", _HOST, "a host name or address")
    listen_port: int = _integer(7551, 0, 65535)
    mesh_peers: tuple[str, ...] = _texts(_MULTIADDR, _MULTIADDR_MEANING)
    gossip_peers: tuple[str, ...] = _texts(_MULTIADDR, _MULTIADDR_MEANING)
    peer_ids_allowed: tuple[str, ...] = _texts(_PEER_ID, "a libp2p peer id in base58")
    peers_max: int = _integer(64, 1, 1024)
    message_bytes_max: int = _integer(4 * 2**20, 64 * 1024, 64 * 2**20)
    queue_messages_max: int = _integer(4096, 16, 65536)
    ping_interval_ms: int = _integer(2500, 100, 60_000)
    ping_timeout_ms: int = _integer(8000, 200, 120_000)
    dial_backoff_ms_max: int = _integer(2_000, 100, _HOUR_MS)


@dataclass(frozen=True, slots=True)
class AttributionSection:
    """``[attribution]``: where exact recomputation runs. Every choice gives the same bits; only speed differs.

    ``processes`` build an index together, each with ``threads`` threads and a copy of the base; 1: the worker by itself.
    """

    device: str = _choice("auto", "auto", "cpu", "cuda")
    backend: str = _choice("auto", "auto", "int8", "fp64", "fp32")
    threads: int = _integer(1, 1, 256)
    processes: int = _integer(1, 1, 64)


@dataclass(frozen=True, slots=True)
class ConsensusSection:
    """``[consensus]``: this node's timers and batches. Nodes may differ in them without harm to safety."""

    timeout_ms_base: int = _integer(1000, 50, 60_000)
    timeout_ms_max: int = _integer(60_000, 1000, 600_000)
    heartbeat_ms: int = _integer(1000, 50, 2000)
    drift_ms_max: int = _integer(10_000, 100, 600_000)
    batch_transactions_max: int = _integer(1000, 1, 100_000)
    block_interval_ms: int = _integer(20, 0, 500)
    vote_fanout: str = _choice("all", "all", "collector")


@dataclass(frozen=True, slots=True)
class MempoolSection:
    """``[mempool]``: bounds on transactions that wait for a block."""

    transactions_max: int = _integer(10_000, 1, 1_000_000)
    bytes_max: int = _integer(64 * 2**20, 64 * 1024, 4 * 2**30)
    transactions_per_sender_max: int = _integer(256, 1, 65536)


@dataclass(frozen=True, slots=True)
class StorageSection:
    """``[storage]``: what the node keeps. ``blobs_bytes_max`` is the quota of all blobs together.

    Blobs that no ledger state refers to are *loose*: they have quotas of their own (all together, those of one account,
    those that no transaction names yet) and go once both ``blobs_loose_heights_max`` and ``blobs_loose_ms_max`` have passed.

    Of the blocks, and what hangs on them, the newest ``retain_heights`` stay; 0 keeps all. Of the state's snapshots, where the chain
    has them, the newest ``snapshots_kept`` stay; others start from them, so 0 should be the exception.
    """

    blobs_bytes_max: int = _integer(4 * 2**30, 2**20, 2**50)
    blobs_loose_bytes_max: int = _integer(2**30, 2**20, 2**50)
    blobs_loose_sender_bytes_max: int = _integer(64 * 2**20, 2**20, 2**50)
    blobs_loose_unnamed_bytes_max: int = _integer(256 * 2**20, 2**20, 2**50)
    blobs_loose_heights_max: int = _integer(600, 1, 10**9)
    blobs_loose_ms_max: int = _integer(600_000, 100, 400 * 24 * _HOUR_MS)
    retain_heights: int = _integer(0, 0, 10**12)
    snapshots_kept: int = _integer(2, 0, 64)


@dataclass(frozen=True, slots=True)
class SpansSection:
    """``[spans]``: indices of verbatim spans, for `openledger spans` and the RPC; where enabled, one for each datanet.

    ``datanets`` names those that are followed; none: all. All indices together take about ``bytes_max`` on disk, some 4 bytes
    for each byte of text, and building takes up to 400 MB of memory: nothing for a validator of few cores.
    """

    enabled: bool = False
    bytes_max: int = _integer(2**30, 2**20, 2**50)
    datanets: tuple[str, ...] = _texts(r"[0-9a-f]{64}", "a datanet's id, 64 lowercase hex digits")


@dataclass(frozen=True, slots=True)
class SyncSection:
    """``[sync]``: how a node that was away catches up.

    With ``snapshot = "auto"`` it starts from a snapshot of the state where it is more than ``lag_heights_max`` behind, or where
    nobody has the blocks in between any more; with ``"never"`` it always executes every block.
    """

    snapshot: str = _choice("auto", "auto", "never")
    lag_heights_max: int = _integer(10_000, 1, 10**12)


@dataclass(frozen=True, slots=True)
class LogSection:
    """``[log]``: what is written to standard error."""

    level: str = _choice("info", "debug", "info", "warning", "error")
    format: str = _choice("console", "console", "json")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of one node."""

    node: NodeSection = NodeSection()
    keys: KeysSection = KeysSection()
    signer: SignerSection = SignerSection()
    rpc: RpcSection = RpcSection()
    network: NetworkSection = NetworkSection()
    attribution: AttributionSection = AttributionSection()
    consensus: ConsensusSection = ConsensusSection()
    mempool: MempoolSection = MempoolSection()
    storage: StorageSection = StorageSection()
    spans: SpansSection = SpansSection()
    sync: SyncSection = SyncSection()
    log: LogSection = LogSection()


def load_config(
    path: Path | None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Read a configuration: defaults < the file at ``path`` < ``environment`` < ``overrides``.

    ``environment`` defaults to the process's. ``overrides`` maps ``"section.key"`` to a typed value or its text.
    Raises `ConfigInvalid` naming the key and what it takes, including for every key that is unknown.
    """
    config = Config()
    if path is not None:
        config = apply_toml(config, _read_toml(path))
    config = apply_environment(config, os.environ if environment is None else environment)
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        config = _set(config, section, key, value, from_text=isinstance(value, str))
    return config


def apply_toml(config: Config, document: Mapping[str, object]) -> Config:
    """Return ``config`` with every value of a parsed TOML document set; raises `ConfigInvalid`."""
    for section, table in document.items():
        if not isinstance(table, dict):
            raise ConfigInvalid(section, _section_expected(section))
        _section_of(config, section)
        for key, value in table.items():
            config = _set(config, section, key, value, from_text=False)
    return config


def apply_environment(config: Config, environment: Mapping[str, str]) -> Config:
    """Return ``config`` with every ``OPENLEDGER_SECTION_KEY`` set; other variables of the prefix are left alone.

    A variable that begins with a known section, or nearly so, but names no key of it is refused: it is a typing error.
    """
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, key = name[len(ENVIRONMENT_PREFIX) :].lower().partition("_")
        if section in _sections():
            config = _set(config, section, key, environment[name], from_text=True)
        elif near := get_close_matches(section, _sections(), n=1):
            meant = f"{ENVIRONMENT_PREFIX}{near[0]}_{key}".upper()
            raise ConfigInvalid(name, f"a section's name after {ENVIRONMENT_PREFIX}; did you mean {meant}?")
    return config


def render_toml(config: Config) -> str:
    """Return ``config`` as TOML that `load_config` reads back to an equal value."""
    lines = []
    for section in _sections():
        lines.append(f"[{section}]")
        table = getattr(config, section)
        lines += [f"{key.name} = {_render_value(getattr(table, key.name))}" for key in fields(table)]
        lines.append("")
    return "\n".join(lines)


def _render_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_render_value(item) for item in value) + "]"
    # JSON would write what is beyond 16 bits as two surrogates, which TOML refuses.
    return json.dumps(value, ensure_ascii=False)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigInvalid(str(path), f"a readable file ({error.strerror})") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigInvalid(str(path), f"at most {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigInvalid(str(path), "TOML that is less deeply nested") from None
    except ValueError as error:
        # Not only tomllib's own error: a number of thousands of digits is Python's to refuse.
        raise ConfigInvalid(str(path), f"TOML in UTF-8 ({str(error)[:_TEXT_LENGTH_MAX]})") from error


def _sections() -> tuple[str, ...]:
    return tuple(section.name for section in fields(Config))


def _section_of(config: Config, section: str) -> Any:
    if section not in _sections():
        raise ConfigInvalid(section, _section_expected(section))
    return getattr(config, section)


def _section_expected(name: str) -> str:
    meant = [f"{section}.{key}" for section, key in _names() if key == name]
    hints = get_close_matches(name, _sections(), n=1) or meant
    return _with_hint("a section", hints, _sections())


def _key_expected(section: str, key: str, known: Iterable[str]) -> str:
    """What would have been a key of ``section``: the same name in another section, else the nearest in this one."""
    elsewhere = [f"{other}.{name}" for other, name in _names() if name == key]
    near = [f"{section}.{name}" for name in get_close_matches(key, list(known), n=1)]
    return _with_hint(f"a key of [{section}]", elsewhere or near, known)


def _with_hint(what: str, hints: Iterable[str], known: Iterable[str]) -> str:
    named = " or ".join(hints)
    return f"{what}; did you mean {named}?" if named else f"{what}, one of {', '.join(known)}"


def _names() -> list[tuple[str, str]]:
    return [(section, key.name) for section in _sections() for key in fields(getattr(Config(), section))]


def _set(config: Config, section: str, key: str, value: object, *, from_text: bool) -> Config:
    table = _section_of(config, section)
    known = {entry.name: entry for entry in fields(table)}
    name = f"{section}.{key}"
    if key not in known:
        raise ConfigInvalid(name, _key_expected(section, key, known))
    default = known[key].default
    if from_text and isinstance(value, str):
        value = _parse_text(name, default, value)
    checked = _check(name, known[key], default, value)
    # A dataclass's keyword arguments are not visible to the type checker through a computed name.
    return replace(config, **{section: replace(table, **{key: checked})})


def _parse_text(name: str, default: object, text: str) -> object:
    """Read a value from an environment variable or a flag; lists are separated by commas."""
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ConfigInvalid(name, "true or false", text)
        return text == "true"
    if isinstance(default, int):
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ConfigInvalid(name, "a whole number", text)
        return int(text)
    if isinstance(default, tuple):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _check(name: str, entry: Field[Any], default: object, value: object) -> object:
    """Return ``value`` as the field keeps it, or raise `ConfigInvalid`."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigInvalid(name, "true or false", value)
        return value
    if isinstance(default, int):
        low, high = entry.metadata["low"], entry.metadata["high"]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigInvalid(name, f"a whole number from {low} to {high}", value)
        return value
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) > _LIST_LENGTH_MAX:
            raise ConfigInvalid(name, f"a list of at most {_LIST_LENGTH_MAX}", value)
        return tuple(_check_text(name, entry, item) for item in value)
    if "values" in entry.metadata:
        if value not in entry.metadata["values"]:
            raise ConfigInvalid(name, f"one of {', '.join(entry.metadata['values'])}", value)
        return value
    return _check_text(name, entry, value)


def _check_text(name: str, entry: Field[Any], value: object) -> str:
    pattern: str = entry.metadata["pattern"]
    if not isinstance(value, str) or len(value) > _TEXT_LENGTH_MAX or not re.fullmatch(pattern, value):
        raise ConfigInvalid(name, entry.metadata["meaning"], value)
    return value
