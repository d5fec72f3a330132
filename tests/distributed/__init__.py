"""Fleets and hosts: real processes, real sockets, real Ray where they are what is tested."""
