"""Environments behind one small interface; one adapter a file."""
