"""One function a sub-command: arguments to a configuration, the job, its closing line, the exit status."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eggroll.cli.arguments import check_data, peers_of, preset_named, ray_named, recorded, resumed, values_of
from eggroll.cli.jobs import built_for, extras_of, learner_for
from eggroll.cli.parsing import asks_for_help, nearest, parse
from eggroll.core.errors import UsageError

STATUS_DOES_NOT_HOLD = 1
_TRADE = {
    "pretrain": "learn a market's messages, by cross-entropy",
    "execute": "fine-tune such a model to execute orders",
    "generate": "write days of a generated market as LOBSTER files",
    "calibrate": "measure a LOBSTER file for the generated market",
}


def pretrain(arguments: Sequence[str]) -> int:
    """pretrain a byte-level language model in pure int8"""
    started = time.perf_counter()
    from eggroll.pretrain.config import PretrainConfig, preset
    from eggroll.pretrain.job import pretrain as run

    check_data(arguments)
    with peers_of("pretrain", arguments) as peers:
        named = preset_named(arguments)
        known = None if peers.process else recorded("pretrain", PretrainConfig, arguments, "preset")
        default = known or preset("demo" if named is None else named)
        config = parse(PretrainConfig, "pretrain", ray_named(arguments), default=default)
        outcome = run(config, report=say, started=started, peers=peers)
        if peers.process == 0:
            _close_with(outcome.summary)
    return int(outcome.exit_status)


def sample(arguments: Sequence[str]) -> int:
    """write text from a pretrained model"""
    from eggroll.pretrain.sample import SampleConfig, prompt_bytes
    from eggroll.pretrain.sample import sample as run

    config = parse(SampleConfig, "sample", arguments)
    sys.stdout.buffer.write(prompt_bytes(config) + run(config) + b"\n")
    return 0


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

    kind, place = KINDS[command], resumed(arguments)
    default = None if place is None else recorded_base(place, kind, command)
    default = default or (recorded(command, kind, arguments, seeds_in=seeds_in) if place else None)
    if default is None:
        flags = ("env", "preset", "algorithm")
        named = [[getattr(kind(), flag), *values_of(arguments, f"--{flag}")][-1] for flag in flags]
        default = settings_for(kind, *named)
    summary, status = train(parse(kind, command, ray_named(arguments), default=default), report=say, started=started)
    _close_with(summary)
    return int(status)


def finetune(arguments: Sequence[str]) -> int:
    """fine-tune a language model on rewards or answers, also by GRPO"""
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
    """fine-tune a Hugging Face transformer on rewards, on vLLM"""
    started = time.perf_counter()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the devices are the engines'
    from eggroll.vllm.config import VllmConfig
    from eggroll.vllm.job import vllm as run

    return _train_model("vllm", VllmConfig, run, arguments, started)


def trade(arguments: Sequence[str]) -> int:
    """an order book: trade pretrain, execute, generate, calibrate"""
    started = time.perf_counter()
    what = _second_word("trade", "WHAT", _TRADE, arguments, "what to do")
    if what is None:
        return 0
    from eggroll.trading.config import CalibrateConfig, ExecuteConfig, GenerateConfig, PretrainConfig

    rest = list(arguments[1:])
    if what == "pretrain":
        from eggroll.trading.pretrain import pretrain as learn

        return _train_model("trade pretrain", PretrainConfig, learn, rest, started)
    if what == "execute":
        from eggroll.trading.execute import execute

        return _train_model("trade execute", ExecuteConfig, execute, rest, started)
    from eggroll.trading.records import calibrate, generate

    kind, run = (GenerateConfig, generate) if what == "generate" else (CalibrateConfig, calibrate)
    _close_with(run(parse(kind, f"trade {what}", rest)))
    return 0


def _train_model(command: str, kind: Any, run: Callable[..., Any], arguments: Sequence[str], started: float) -> int:
    known = recorded(command.replace(" ", "-"), kind, arguments)
    default = {} if known is None else {"default": known}
    outcome = run(parse(kind, command, ray_named(arguments), **default), report=say, started=started)
    _close_with(outcome.summary)
    return int(outcome.exit_status)


def chat(arguments: Sequence[str]) -> int:
    """talk to a fine-tuned model, or have it complete a prompt"""
    from eggroll.llm.chat import ChatConfig
    from eggroll.llm.chat import chat as run

    run(parse(ChatConfig, "chat", arguments), lines=sys.stdin, say=lambda text: print(text, flush=True))
    return 0


def worker(arguments: Sequence[str]) -> int:
    """evaluate members for a run elsewhere that waits with --listen"""
    from eggroll.distributed.launch import work_for
    from eggroll.distributed.worker_settings import WorkerConfig

    config = parse(WorkerConfig, "worker", arguments)
    work_for(config.address, built_for, patience=config.patience, say=say)
    return 0


def replay(arguments: Sequence[str]) -> int:
    """rebuild a run's weights from its journal, check it, export it"""
    from eggroll.runs.replay import ReplayConfig, replay_command

    _close_with(replay_command(parse(ReplayConfig, "replay", arguments), learner_for))
    return 0


def report(arguments: Sequence[str]) -> int:
    """draw runs on one page: differences, curves, samples, final table"""
    from eggroll.runs.report import ReportConfig
    from eggroll.runs.report import report as run

    _close_with(run(parse(ReportConfig, "report", arguments), extras_of))
    return 0


def bench(arguments: Sequence[str]) -> int:
    """bench speed: a perturbed population against plain inference"""
    benchmarks = {"speed": "a perturbed linear layer against plain batched inference"}
    if _second_word("bench", "BENCHMARK", benchmarks, arguments, "a benchmark") is None:
        return 0
    from eggroll.bench.speed import SpeedConfig, bench_speed

    _close_with(bench_speed(parse(SpeedConfig, "bench speed", arguments[1:]), report=say))
    return 0


def theory(arguments: Sequence[str]) -> int:
    """draw the theory's figures with numbers, and check its claims"""
    from eggroll.theory.command import FIGURES, IntensityConfig, TheoryConfig, calculate, draw_figures

    figures = {**FIGURES, "all": "all of these"}
    name, flags = _second_word("theory", "FIGURE", figures, arguments, "a figure"), arguments[1:]
    if name is None:
        return 0
    if name == "intensity":
        summary = calculate(parse(IntensityConfig, "theory intensity", flags), report=say)
    else:
        names = list(FIGURES) if name == "all" else [name]
        summary = draw_figures(names, parse(TheoryConfig, f"theory {name}", flags), report=say)
    _close_with(summary)
    return 0 if summary["holds"] else STATUS_DOES_NOT_HOLD


def doctor(arguments: Sequence[str]) -> int:
    """versions, devices, extras, a self-check, what memory holds"""
    from eggroll.doctor.command import DoctorConfig, diagnose

    try:
        config = parse(DoctorConfig, "doctor", arguments)
    except ImportError:  # tyro is broken, which is what one wants to be told
        config = DoctorConfig(json="--json" in arguments)
    found = diagnose(config)
    print(json.dumps(found.as_json()) if config.json else found.as_text(), flush=True)
    return 0 if found.holds else STATUS_DOES_NOT_HOLD


def _second_word(
    command: str, name: str, choices: Mapping[str, str], arguments: Sequence[str], kind: str
) -> str | None:
    """The word after the command; None where its help was asked for and printed."""
    word = next(iter(arguments), "")
    if word in choices:
        return word
    if asks_for_help(arguments[:1]):
        from eggroll.cli.help import menu

        usage = f"usage: eggroll {command} {name} [flags]; eggroll {command} {name} --help tells its flags"
        print(menu(usage, {"": choices.items()}))
        return None
    raise UsageError(
        f"expected {kind} among {', '.join(choices)}, got {word or 'nothing'}; "
        f"{nearest(word, choices)}eggroll {command} --help lists them"
    )


def _close_with(summary: dict[str, Any]) -> None:
    """The closing line of JSON."""
    print(json.dumps(summary), flush=True)


def say(line: str) -> None:
    """A line for a person."""
    print(line, file=sys.stderr, flush=True)
