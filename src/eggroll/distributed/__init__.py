"""More than one machine: several hosts that compute as one (JAX), and a fleet that comes and goes (Ray)."""
