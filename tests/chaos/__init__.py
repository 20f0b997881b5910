"""Real daemons under load while they are killed, stopped, cut off and damaged; and the long quiet run that shows leaks."""
