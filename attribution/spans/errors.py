"""Errors of the span index."""

from __future__ import annotations


class SpanFileError(ValueError):
    """A file of a span index is missing, cut short, of another version, or contradicts itself."""


class SpanLimit(ValueError):
    """Records or outputs beyond what a span index takes; nothing was changed."""
