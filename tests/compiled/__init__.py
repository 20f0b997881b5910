"""The daemon's machine code does what the text does (docs/compiled.md)."""
