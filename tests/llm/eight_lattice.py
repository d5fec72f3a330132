"""Run by test_lattice.py on 8 devices."""

import jax

from tests.llm.test_lattice import devices_agree


def test_eight_devices_take_the_same_steps():
    assert jax.device_count() == 8
    devices_agree()
