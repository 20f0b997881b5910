"""Verbatim spans: which stretches of an output stand word for word in which records of a datanet.

`SpanIndex` holds the records' tokens and, sorted, every place in them (a suffix array: Manber and Myers 1993), in files
that are mapped. `SpanIndex.spans` gives an output's *maximal* matching spans: stretches that occur in some record and
cannot be made longer on either side. The answer is a pure function of (live records, output, shortest length): how the
records were added, merged or erased beside it changes no bit of it.

Nothing here is trained and nothing is hashed: the index is local, is made from the records alone, and pays nobody by
itself. "Matched", not "copied": the same words may have been in the base's own training text.
"""

from attribution.spans.errors import SpanFileError, SpanLimit
from attribution.spans.matching import Place, Span
from attribution.spans.store import SpanIndex

__all__ = ["Place", "Span", "SpanFileError", "SpanIndex", "SpanLimit"]
