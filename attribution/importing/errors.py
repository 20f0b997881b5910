"""The one error of this room."""

from __future__ import annotations

from attribution.errors import ExactError


class ImportRefused(ExactError):
    """A directory that cannot be imported; the message names the file, key or tensor, and what would be accepted."""
