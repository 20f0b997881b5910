"""Recomputing what is paid for, in one worker process, so that no vote ever waits for a matrix."""
