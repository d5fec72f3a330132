"""The command `eggroll`: one sub-command per job. Nothing is parsed and no engine is imported before `main`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import itertools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from eggroll._version import __version__
from eggroll.core.errors import UsageError

STATUS_BAD_INPUT = 2
STATUS_DOES_NOT_HOLD = 1
_LISTED = ("jax", "jaxlib", "optax", "orbax-checkpoint", "numpy", "tyro", "rich", "matplotlib", "jaxtyping")
_EXTRAS = {
    "hf": ("datasets",),
    "llm": ("math_verify", "reasoning_gym", "tokenizers"),
    "ray": ("ray",),
    "track": ("tensorboardX", "wandb"),
    "vllm": ("torch", "transformers", "vllm"),
}


def pretrain(arguments: Sequence[str]) -> int:
    """pretrain a byte-level language model in pure int8"""
    started = time.perf_counter()
    from eggroll.pretrain.config import PretrainConfig, preset
    from eggroll.pretrain.job import pretrain as run

    if any(
        flag == "--data" and (after.startswith("--") or not after)
        for flag, after in itertools.pairwise([*arguments, ""])
    ):
        raise UsageError(
            "expected a file, folder, glob or hf:NAME after --data, got nothing; leave --data out for "
            "the standard library"
        )
    with _peers("pretrain", arguments) as peers:
        named = _preset_named(arguments)
        recorded = None if peers.process else _recorded("pretrain", PretrainConfig, arguments, "preset")
        config = _parse(
            PretrainConfig,
            "pretrain",
            _ray_named(arguments),
            default=recorded or preset("demo" if named is None else named),
        )
        outcome = run(config, report=_say, started=started, peers=peers)
        if peers.process == 0:
            print(json.dumps(outcome.summary), flush=True)
    return outcome.exit_status


def rl(arguments: Sequence[str]) -> int:
    """train a policy in an environment, by EGGROLL, OpenES or PPO"""
    return _train_policy("rl", arguments)


def marl(arguments: Sequence[str]) -> int:
    """train a team of agents in a game, by EGGROLL, OpenES or IPPO"""
    return _train_policy("marl", arguments)


def _train_policy(command: str, arguments: Sequence[str]) -> int:
    started = time.perf_counter()
    from eggroll.rl.job import KINDS, seeds_in, train
    from eggroll.rl.presets import settings_for
    from eggroll.rl.tune import recorded_base

    kind, place = KINDS[command], _resumed(arguments)
    recorded = None if place is None else recorded_base(place, kind, command)
    recorded = recorded or (_recorded(command, kind, arguments, seeds_in=seeds_in) if place else None)
    if recorded is None:
        flags = ("env", "preset", "algorithm")
        named = [[getattr(kind(), flag), *_values(arguments, f"--{flag}")][-1] for flag in flags]
        recorded = settings_for(kind, *named)
    config = _parse(kind, command, _ray_named(arguments), default=recorded)
    summary, status = train(config, report=_say, started=started)
    print(json.dumps(summary), flush=True)
    return status


def finetune(arguments: Sequence[str]) -> int:
    """fine-tune a language model on rewards, by EGGROLL, OpenES or GRPO, or on answers"""
    started = time.perf_counter()
    from eggroll.llm.config import FinetuneConfig
    from eggroll.llm.job import finetune as run

    return _train_model("finetune", FinetuneConfig, run, arguments, started)


def distill(arguments: Sequence[str]) -> int:
    """train an int8 language model to match its float teacher"""
    started = time.perf_counter()
    from eggroll.llm.distill import distill as run
    from eggroll.llm.distill_config import DistillConfig

    return _train_model("distill", DistillConfig, run, arguments, started)


def vllm(arguments: Sequence[str]) -> int:
    """fine-tune a Hugging Face transformer on rewards, on vLLM engines"""
    started = time.perf_counter()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the devices are the engines'
    from eggroll.vllm.config import VllmConfig
    from eggroll.vllm.job import vllm as run

    return _train_model("vllm", VllmConfig, run, arguments, started)


def trade(arguments: Sequence[str]) -> int:
    """trade a limit order book: trade pretrain, execute, generate, calibrate"""
    started = time.perf_counter()
    names = ("pretrain", "execute", "generate", "calibrate")
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: eggroll trade {pretrain,execute,generate,calibrate} [flags]; each tells its flags with --help")
        return 0
    if not arguments or arguments[0] not in names:
        got = " ".join(arguments[:1]) or "nothing"
        raise UsageError(f"expected eggroll trade with one of {', '.join(names)}, got {got}; name what to do")
    from eggroll.trading.config import CalibrateConfig, ExecuteConfig, GenerateConfig, PretrainConfig

    what, rest = arguments[0], list(arguments[1:])
    if what == "pretrain":
        from eggroll.trading.pretrain import pretrain as learn

        return _train_model("trade pretrain", PretrainConfig, learn, rest, started)
    if what == "execute":
        from eggroll.trading.execute import execute

        return _train_model("trade execute", ExecuteConfig, execute, rest, started)
    from eggroll.trading.records import calibrate, generate

    kind, run = (GenerateConfig, generate) if what == "generate" else (CalibrateConfig, calibrate)
    print(json.dumps(run(_parse(kind, f"trade {what}", rest))))
    return 0


def _train_model(command: str, kind: Any, run: Callable[..., Any], arguments: Sequence[str], started: float) -> int:
    recorded = _recorded(command.replace(" ", "-"), kind, arguments)
    default = {} if recorded is None else {"default": recorded}
    outcome = run(_parse(kind, command, _ray_named(arguments), **default), report=_say, started=started)
    print(json.dumps(outcome.summary), flush=True)
    return int(outcome.exit_status)


def chat(arguments: Sequence[str]) -> int:
    """talk to a fine-tuned model, or have it complete a prompt"""
    from eggroll.llm.chat import ChatConfig
    from eggroll.llm.chat import chat as run

    run(_parse(ChatConfig, "chat", arguments), lines=sys.stdin, say=lambda text: print(text, flush=True))
    return 0


def worker(arguments: Sequence[str]) -> int:
    """evaluate members for a run on another machine, which waits with --listen"""
    from eggroll.distributed.launch import work_for
    from eggroll.distributed.worker_settings import WorkerConfig

    config = _parse(WorkerConfig, "worker", arguments)
    work_for(config.address, _built_for, patience=config.patience, say=_say)
    return 0


def sample(arguments: Sequence[str]) -> int:
    """write text from a pretrained model"""
    from eggroll.pretrain.sample import SampleConfig, prompt_bytes
    from eggroll.pretrain.sample import sample as run

    config = _parse(SampleConfig, "sample", arguments)
    sys.stdout.buffer.write(prompt_bytes(config) + run(config) + b"\n")
    return 0


def replay(arguments: Sequence[str]) -> int:
    """rebuild a run's weights from its journal, check its snapshots, export the journal"""
    from eggroll.runs.replay import ReplayConfig, replay_command

    print(json.dumps(replay_command(_parse(ReplayConfig, "replay", arguments), _learner_for)))
    return 0


def report(arguments: Sequence[str]) -> int:
    """draw runs on one page: differences, curves, samples, final table"""
    from eggroll.runs.report import ReportConfig
    from eggroll.runs.report import report as run

    print(json.dumps(run(_parse(ReportConfig, "report", arguments), _extras_of)))
    return 0


def bench(arguments: Sequence[str]) -> int:
    """measure this machine: bench speed compares a perturbed population with plain inference"""
    from eggroll.bench.speed import SpeedConfig, bench_speed

    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: eggroll bench speed [flags]; eggroll bench speed --help tells its flags")
        return 0
    if list(arguments[:1]) != ["speed"]:
        raise UsageError(f"expected a benchmark among speed, got {' '.join(arguments) or 'nothing'}; add speed")
    summary = bench_speed(_parse(SpeedConfig, "bench speed", arguments[1:]), report=_say)
    print(json.dumps(summary))
    return 0


def theory(arguments: Sequence[str]) -> int:
    """draw the theory's figures with their numbers, and check its claims"""
    from eggroll.theory.command import FIGURES, IntensityConfig, TheoryConfig, calculate, draw_figures

    name, flags = next(iter(arguments), ""), arguments[1:]
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {figure:13} {shown}" for figure, shown in (*FIGURES.items(), ("all", "all of these")))
        print(f"usage: eggroll theory FIGURE|all [flags]; eggroll theory FIGURE --help tells its flags\n\n{rows}")
        return 0
    if name not in (*FIGURES, "all"):
        raise UsageError(f"expected a figure among {', '.join(FIGURES)}, or all, got {name or 'nothing'}; name one")
    if name == "intensity":
        summary = calculate(_parse(IntensityConfig, "theory intensity", flags), report=_say)
    else:
        names = list(FIGURES) if name == "all" else [name]
        summary = draw_figures(names, _parse(TheoryConfig, f"theory {name}", flags), report=_say)
    print(json.dumps(summary))
    return 0 if summary["holds"] else STATUS_DOES_NOT_HOLD


def doctor(arguments: Sequence[str]) -> int:
    """print versions, devices and extras"""
    _parse(lambda: None, "doctor", arguments, description=doctor.__doc__)
    import jax

    print(f"eggroll {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _LISTED:
        print(f"  {name} {metadata.version(name)}")
    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = f'absent: pip install "eggroll-es[{extra}]"' if missing else "present"
        print(f"extra {extra}: {state}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": pretrain,
    "sample": sample,
    "rl": rl,
    "marl": marl,
    "finetune": finetune,
    "distill": distill,
    "vllm": vllm,
    "trade": trade,
    "chat": chat,
    "worker": worker,
    "replay": replay,
    "report": report,
    "bench": bench,
    "theory": theory,
    "doctor": doctor,
}


LEARNERS = {
    "pretrain": "eggroll.pretrain.job",
    "rl": "eggroll.rl.job",
    "marl": "eggroll.rl.job",
    "finetune": "eggroll.llm.job",
    "distill": "eggroll.llm.distill",
    "vllm": "eggroll.vllm.job",
    "trade-pretrain": "eggroll.trading.pretrain",
    "trade-execute": "eggroll.trading.execute",
}
"""Job → module whose `learner_of` makes its learner of a journal's header, and `worker_job` the job for a worker."""


COMPARISONS = {
    "rl": "eggroll.rl.comparison",
    "marl": "eggroll.rl.comparison",
    "finetune": "eggroll.llm.comparison",
    "distill": "eggroll.llm.distilled",
    "trade-execute": "eggroll.trading.comparison",
    "trade-pretrain": "eggroll.trading.comparison",
}
"""Job → module whose `compared` makes of all runs of a report what it has to say of those of this job."""


def _extras_of(runs: Sequence[Any]) -> list[Any]:
    jobs = [run.config.get("job") for run in runs]
    modules = dict.fromkeys(COMPARISONS[job] for job in jobs if isinstance(job, str) and job in COMPARISONS)
    return [importlib.import_module(name).compared(runs) for name in modules]


def _peers(command: str, arguments: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
    """The processes of the run, found before anything else is done; this one alone without --coordinator."""
    from eggroll.runs.peers import Alone

    fleet = _values(arguments, "--ray") + _values(arguments, "--listen")  # refused together, before anybody is met
    if fleet or not _values(arguments, "--coordinator") or {"--help", "-h"} & set(arguments):
        return contextlib.nullcontext(Alone())
    from eggroll.distributed.hosts import join
    from eggroll.runs.settings import HostSettings

    settings = _parse(HostSettings, command, arguments, return_unknown_args=True)[0]
    return join(settings, name=f"eggroll {command}")


def _learner_for(header: dict[str, Any], base: Path | None) -> Any:
    from eggroll.runs.folder import shown

    job = header.get("job")
    if not isinstance(job, str) or job not in LEARNERS:
        raise UsageError(
            f"expected a journal of {', '.join(LEARNERS)}, got one of {shown(job)}; the journal of a strategy of "
            "your own is replayed with eggroll.replay(…) in Python"
        )
    return importlib.import_module(LEARNERS[job]).learner_of(header, base)


def _built_for(welcome: dict[str, Any]) -> Any:
    """A run's job, for a worker."""
    from eggroll.runs.folder import shown

    job = welcome["header"].get("job")
    if not isinstance(job, str) or job not in LEARNERS:
        raise UsageError(f"expected a run of {', '.join(LEARNERS)}, got one of {shown(job)}; use the run's version")
    return importlib.import_module(LEARNERS[job]).worker_job(welcome)


def _ray_named(arguments: Sequence[str]) -> list[str]:
    """`--ray` without an address is a Ray of its own on this machine."""
    found = []
    for flag, after in itertools.pairwise([*arguments, ""]):
        found.append(flag)
        if flag == "--ray" and (not after or after.startswith("--")):
            found.append("local")
    return found


def _resumed(arguments: Sequence[str]) -> Path | None:
    """The folder that is to be gone on with."""
    folders = _values(arguments, "--run-dir")
    asked = "--resume" in arguments and not {"--help", "-h"} & set(arguments)
    return Path(folders[-1]) if asked and folders else None


def _recorded(
    command: str,
    kind: type[Any],
    arguments: Sequence[str],
    *chosen: str,
    seeds_in: Callable[[Path], list[Path]] = lambda home: [],
) -> Any:
    """With --resume, flags that are not given are those of the run; None where the run is another's by one of `chosen`,
    flags that other defaults hang on. `seeds_in` finds the folders of a run of several seeds, lowest first."""
    place = _resumed(arguments)
    if place is None:
        return None
    from eggroll.runs.folder import RunFolder
    from eggroll.runs.going_on import recorded_settings

    seeds = seeds_in(place)
    recorded = recorded_settings(RunFolder.open(seeds[0] if seeds else place), kind, command)
    recorded = dataclasses.replace(recorded, seeds=len(seeds)) if seeds else recorded
    asked = {name: _values(arguments, f"--{name}")[-1:] for name in chosen}
    return None if any(value and value != [getattr(recorded, name)] for name, value in asked.items()) else recorded


def _preset_named(arguments: Sequence[str]) -> str | None:
    """The preset must be known before the flags are parsed, since it is their defaults; the last one counts."""
    return next(iter(reversed(_values(arguments, "--preset"))), None)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """What follows a flag, every time that it is given."""
    found = []
    for name, value in itertools.pairwise([*arguments, ""]):
        if name == flag:
            found.append(value)
        elif name.startswith(f"{flag}="):
            found.append(name.split("=", 1)[1])
    return found


def _parse(kind: Callable[..., Any], command: str, arguments: Sequence[str], **options: Any) -> Any:
    """Flags to a configuration. `--help` leaves by SystemExit.

    Raises:
      UsageError: a flag or a value is wrong; one line in place of tyro's box.
    """
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            settings = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(kind, args=list(arguments), prog=f"eggroll {command}", config=settings, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _usage_error_behind(stop) or UsageError(_one_line(box.getvalue(), command, arguments)) from None


def _usage_error_behind(error: BaseException | None) -> UsageError | None:
    """The complaint of a configuration about its values, which tyro takes for one about a flag."""
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error


def _one_line(box: str, command: str, arguments: Sequence[str]) -> str:
    """What tyro's box says, as the house says it: the text between its title and its first rule."""
    rows = [row.strip("│ ") for row in box.splitlines()[1:]]
    body = itertools.dropwhile(_is_rule, rows)
    text = " ".join(itertools.takewhile(lambda row: not _is_rule(row), body))
    wrong = re.match(r"Error parsing (--[\w-]+):", text)
    if wrong:
        flag = wrong[1]
        usage = next((row for row in rows if row.startswith(f"{flag} ")), flag)
        value = (_values(arguments, flag) or [""])[-1]
        return f"expected {usage}, got {value!r}; eggroll {command} --help tells its flags"
    got = text[:1].lower() + text[1:].rstrip(".")
    return f"expected the flags that eggroll {command} --help tells, got {got}; mend the command"


def _is_rule(row: str) -> bool:
    """Whether it is a line of the box, drawn in Unicode or, where the terminal has none, in hyphens."""
    return not row.strip("─╰╯- ")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _help() -> str:
    rows = "\n".join(f"  {name:10} {command.__doc__}" for name, command in COMMANDS.items())
    return f"usage: eggroll COMMAND [flags]; eggroll COMMAND --help tells its flags\n\n{rows}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status: 0 done, 1 a claim of the theory does not hold, 2 bad input (one line
    on standard error), 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else STATUS_BAD_INPUT
    if given[0] == "--version":
        print(__version__)
        return 0
    if given[0] not in COMMANDS:
        _say(f"eggroll: expected a command among {', '.join(COMMANDS)}, got {given[0]!r}; see eggroll --help")
        return STATUS_BAD_INPUT
    try:
        return COMMANDS[given[0]](given[1:])
    except UsageError as error:
        _say(f"eggroll {given[0]}: {error}")
        return STATUS_BAD_INPUT
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _say(f"eggroll {given[0]}: stopped at once; what the journal has is kept, go on with --resume")
        return 130
