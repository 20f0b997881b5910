"""Exact arithmetic, the model, training, serving and attribution; the only home of torch."""
