"""Development networks on one machine: launching the daemons and playing the demonstration's story."""
