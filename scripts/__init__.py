"""Makers of what ships with the project."""
