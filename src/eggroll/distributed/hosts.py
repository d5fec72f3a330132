"""Several processes, on one host or on several, as one run: they find each other, and JAX sees all their devices."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eggroll._version import __version__
from eggroll.distributed.channel import Channel
from eggroll.distributed.switchboard import Greeting, Switchboard, listen, reach, tunnel
from eggroll.distributed.team import Team
from eggroll.runs.folder import RunError, reason
from eggroll.runs.settings import HostSettings

_JAX_PATIENCE = 86_400
"""Seconds until JAX itself would take a process for lost: never before `Team` does."""
_TAKING_LEAVE = 60
"""Seconds that JAX waits for the others at the end."""
_USER_SILENCE = 30.0
_teams = 0


def join(settings: HostSettings, *, name: str) -> Team:
    """Find the other processes and start JAX over all of them; before anything else is done with JAX.

    Args:
      settings: with a coordinator.
      name: what lines on standard error begin with.
    Raises:
      UsageError: the others do not come, are of other versions, or JAX is in use already.
    """
    import jax

    if jax.distributed.is_initialized():
        raise RunError("expected JAX before it is distributed, got --coordinator as well; do one of the two")
    (host, port), count, process, devices = _placed(settings)
    team = Team(process, count, silence=settings.peer_timeout, name=name)
    own = Greeting(process, count, _versions())
    if process == 0:
        board = Switchboard(listen(host, port), own, _free_port())
        connections, jax_port = board.gather(float(settings.start_timeout)), board.jax_port
    else:
        connection, token = reach(host, port, own, float(settings.start_timeout))
        connections, jax_port = [connection], tunnel(host, port, token)
    team.watch([Channel(each, i if process == 0 else 0, team.ended) for i, each in enumerate(connections, 1)])
    address = connections[0].getsockname()[0] if connections else "127.0.0.1"
    try:
        _start_jax(jax_port, count, process, devices, address, settings.start_timeout)
    except BaseException as error:
        team.__exit__(type(error), error, None)
        raise
    team.at_the_end(_leave_jax)
    return team


def _placed(settings: HostSettings) -> tuple[tuple[str, int], int, int, Sequence[int] | None]:
    """Address of process 0, number of processes, which one this is, and which devices of its host are its own."""
    if settings.coordinator != "auto":
        assert settings.processes is not None and settings.process is not None  # HostSettings sees to it
        return settings.address(), settings.processes, settings.process, None
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks; it has no public name

    try:
        address, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, settings.processes, settings.process, None, None, settings.start_timeout
        )
    except Exception as error:  # each kind of cluster has its own
        raise RunError(f"expected a cluster with --coordinator auto, got {reason(error)}; give HOST:PORT") from None
    if address is None or count is None or process is None:
        raise RunError(
            "expected Slurm, Open MPI or Kubernetes with --coordinator auto, got none; give HOST:PORT of process 0, "
            "--processes and --process"
        )
    found = HostSettings(coordinator=address, processes=count, process=process)
    return found.address(), count, process, devices


def _versions() -> dict[str, str]:
    import jax
    import jaxlib

    return {"eggroll": __version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _start_jax(port: int, count: int, process: int, devices: Sequence[int] | None, address: str, seconds: int) -> None:
    import jax

    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # a web proxy does not know this host's loopback …
    jax.config.update("jax_check_proxy_envs", False)  # … and all that JAX would warn of goes there
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the loop
    _use_gloo(address)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            count,
            process,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=_JAX_PATIENCE,
            shutdown_timeout_seconds=_TAKING_LEAVE,
            coordinator_bind_address=f"127.0.0.1:{port}",
        )
        _meet()
    except Exception as error:
        raise RunError(f"expected to start JAX over {count} processes, got {reason(error)}; mend that") from None


def _meet() -> None:
    """The first collective: whether the hosts reach each other is found out now.

    Gloo tells of it on standard output, where the closing line of JSON belongs.
    """
    from jax.experimental import multihost_utils

    sys.stdout.flush()
    with contextlib.ExitStack() as stack, Path(os.devnull).open("wb") as nothing:
        with contextlib.suppress(OSError):  # there may be no standard output
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(nothing.fileno(), 1)
        multihost_utils.sync_global_devices("eggroll")


def _leave_jax() -> None:
    import jax

    with contextlib.suppress(Exception):  # all is written; a process lost now takes nothing along
        jax.distributed.shutdown()


def _use_gloo(address: str) -> None:
    """CPU collectives over this address: by itself, gloo takes whatever the host's name leads to."""
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax
    from jax.extend.backend import register_backend_factory

    def client() -> Any:
        gloo = _jax.make_gloo_tcp_collectives(distributed_client=distributed.global_state.client, hostname=address)
        return xla_bridge.make_cpu_client(collectives=gloo)

    try:
        register_backend_factory("cpu", client, priority=0, fail_quietly=False)
    except RuntimeError:
        raise RunError(
            "expected JAX before its first use, got one that has computed; start the processes before that"
        ) from None


def joined() -> Team | None:
    """The processes over which the user has started JAX; none where this one is alone.

    JAX itself ends all processes, in its own words, when one is lost; the team does it sooner where it can.
    """
    import jax

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    from jax._src.distributed import global_state

    global _teams
    _teams += 1
    key, process, count = f"eggroll/team/{_teams}", jax.process_index(), jax.process_count()
    place = HostSettings(coordinator=str(global_state.coordinator_address), processes=count, process=process)
    host = place.address()[0]
    team = Team(process, count, silence=_USER_SILENCE, name="eggroll", leaves=False)
    client: Any = global_state.client
    if process == 0:
        listener, token = listen(host, 0), os.urandom(16).hex()
        client.key_value_set(key, f"{listener.getsockname()[1]} {token}")
        board = Switchboard(listener, Greeting(process, count, _versions(), token))
        connections = board.gather(float(_TAKING_LEAVE))
        team.at_the_end(board.close)
    else:
        port, token = client.blocking_key_value_get(key, 1000 * _TAKING_LEAVE).split()
        connections = [reach(host, int(port), Greeting(process, count, _versions(), token), float(_TAKING_LEAVE))[0]]
    team.watch([Channel(each, i if process == 0 else 0, team.ended) for i, each in enumerate(connections, 1)])
    return team
