"""Peer identities and addresses, without importing libp2p (the command line needs them too).

A peer id is the libp2p identity multihash of an Ed25519 public key: ``00 24 08 01 12 20`` and the 32 key bytes, in
base58 (libp2p specifications, peer-ids). Only Ed25519 identities and only TCP addresses are accepted.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from nacl.signing import SigningKey

from node.network.errors import AddressInvalid

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ED25519_IDENTITY_PREFIX = bytes.fromhex("002408011220")
_TEXT_CHARS_MAX = 512
_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_EXPECTED = "/ip4|ip6|dns4|dns6/HOST/tcp/PORT/p2p/PEER_ID"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Who a peer is and where it listens.

    ``peer_id`` is base58; ``multiaddr`` the whole address, ``/p2p/PEER_ID`` included.
    """

    peer_id: str
    multiaddr: str

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read ``/ip4/127.0.0.1/tcp/4001/p2p/12D3...``; raises `AddressInvalid`."""
        if len(text) > _TEXT_CHARS_MAX:
            raise AddressInvalid(text[:64], f"at most {_TEXT_CHARS_MAX} characters")
        parts = text.split("/")
        if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
            raise AddressInvalid(text, _EXPECTED)
        _check_host(text, parts[1], parts[2])
        if not (parts[4].isascii() and parts[4].isdigit() and 1 <= int(parts[4]) <= 65535):
            raise AddressInvalid(text, "a TCP port from 1 to 65535")
        check_peer_id(parts[6])
        return cls(peer_id=parts[6], multiaddr=text)

    @classmethod
    def of(cls, host: str, port: int, peer_id: str) -> PeerAddress:
        """Build the address of ``peer_id`` at an IP address or name and a TCP port."""
        return cls.parse(f"{_host_part(host)}/tcp/{port}/p2p/{peer_id}")

    @property
    def host(self) -> str:
        """The IP address or DNS name."""
        return self.multiaddr.split("/")[2]

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.multiaddr.split("/")[4])

    def __str__(self) -> str:
        return self.multiaddr


def peer_id_of_seed(seed: bytes) -> str:
    """Return the base58 peer id of the Ed25519 node key with this 32-byte seed."""
    if len(seed) != 32:
        raise AddressInvalid(f"{len(seed)}-byte seed", "a 32-byte Ed25519 seed")
    return peer_id_of_public_key(bytes(SigningKey(seed).verify_key))


def peer_id_of_public_key(public_key: bytes) -> str:
    """Return the base58 peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise AddressInvalid(f"{len(public_key)}-byte key", "a 32-byte Ed25519 public key")
    return _base58_encode(_ED25519_IDENTITY_PREFIX + public_key)


def check_peer_id(text: str) -> bytes:
    """Return the 38 bytes of an Ed25519 peer id; raises `AddressInvalid`."""
    expected = "a base58 Ed25519 peer id (12D3Koo...)"
    if not 40 <= len(text) <= 60 or any(char not in _ALPHABET for char in text):
        raise AddressInvalid(text[:64], expected)
    raw = _base58_decode(text)
    if len(raw) != 38 or not raw.startswith(_ED25519_IDENTITY_PREFIX) or _base58_encode(raw) != text:
        raise AddressInvalid(text, expected)
    return raw


def listen_multiaddr(host: str, port: int) -> str:
    """Return the multiaddr to listen on; ``port`` 0 lets the system choose."""
    return f"{_host_part(host)}/tcp/{port}"


def _host_part(host: str) -> str:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"/dns4/{host}"
    return f"/ip{version}/{host}"


def _check_host(text: str, protocol: str, host: str) -> None:
    try:
        if protocol == "ip4":
            ipaddress.IPv4Address(host)
        elif protocol == "ip6":
            ipaddress.IPv6Address(host)
        elif protocol not in ("dns4", "dns6") or not _DNS_NAME.fullmatch(host):
            raise AddressInvalid(text, _EXPECTED)
    except ipaddress.AddressValueError as error:
        raise AddressInvalid(text, f"a valid {protocol} address") from error


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _ALPHABET[rest] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def _base58_decode(text: str) -> bytes:
    number = 0
    for char in text:
        number = number * 58 + _ALPHABET.index(char)
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
