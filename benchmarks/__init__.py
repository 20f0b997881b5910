"""What is measured and how; docs/benchmarks.md quotes the last figures."""
