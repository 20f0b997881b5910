"""The base model that ships with the project, made by ``scripts/make_base.py`` from standard-library docstrings.

A byte-level Llama of 0.8 million parameters: 4 layers, width 128, 4 heads over 2 key-value heads, feed-forward width
352, 512 positions, 256 tokens (byte values; 0 is both beginning and end). The file is authoritative: whoever loads it
for anything that is hashed or paid checks `BASE_HASH`. Importing this package does not import torch.
"""

from __future__ import annotations

from pathlib import Path

BASE_PATH = Path(__file__).with_name("base.safetensors")
"""`attribution.checkpoint.load_base` reads it."""

BASE_HASH = bytes.fromhex("38d607c51ceb11746712df01775eb3d5f3f88a34f21f8d2b59fe4275298aa59c")
"""`Base.hash` of the file at `BASE_PATH`, 32 bytes."""
