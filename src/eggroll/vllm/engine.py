"""One vLLM engine: its weights are the mean of a run, and members complete prompts as its adapters.

It may stand in this process or in an actor of Ray. No JAX here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.vllm.leaves import TARGETS, Part
from eggroll.vllm.mean import MeanSettings
from eggroll.vllm.step import Step

EXTENSION = "eggroll.vllm.extension.EggrollExtension"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank."""


class EngineError(UsageError):
    """The engine failed, and what it holds is not to be used any more; one line."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is started.

    Attributes:
      model: a folder or a name of Hugging Face.
      mean: what its ranks must know of the run.
      adapters: members that it holds at a time.
      targets: names of the linear layers that have adapters.
      tensor_parallel: devices over which each matrix is shared out.
      dtype: "auto", "float32", "bfloat16", "float16".
      context: most tokens of a prompt and its completion.
      options: further arguments of `vllm.LLM`.
    """

    model: str
    mean: MeanSettings
    adapters: int
    targets: tuple[str, ...] = TARGETS
    tensor_parallel: int = 1
    dtype: str = "auto"
    context: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


class Sampling(NamedTuple):
    """How completions are drawn.

    Attributes:
      tokens: most of a completion.
      temperature: 0 takes the likeliest token.
      top_p: draw from the fewest likeliest tokens whose probabilities sum to this.
      stop: texts that end a completion.
    """

    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


class Row(NamedTuple):
    """One completion to write.

    Attributes:
      prompt: its tokens.
      seed: of its draws; the same gives the same.
    """

    prompt: list[int]
    seed: int = 0


class Written(NamedTuple):
    """A completion.

    Attributes:
      text: of it, without what stopped it.
      tokens: how many were written.
      ended: by itself, not by the limit.
    """

    text: str
    tokens: int
    ended: bool


class Engine:
    """A vLLM engine with the weights of some generation.

    Attributes:
      generation: which updates the weights have seen.
      parts: what each rank holds.
    Raises:
      UsageError: vLLM is not installed, or refuses the model or the settings.
    """

    def __init__(self, settings: EngineSettings) -> None:
        _settle_environment(settings)
        try:
            import vllm
        except ImportError as error:
            raise UsageError(
                f'expected the package vllm, got {error}; pip install "eggroll-es[vllm]" on a machine with CUDA, or '
                "scripts/install-vllm.sh for the CPU"
            ) from None
        self.settings, self.generation = settings, 0
        self.llm = _started(vllm.LLM, settings)
        told = self.call("prepare", json.dumps(settings.mean._asdict()))
        self.parts = [[Part.from_json(part) for part in one] for one in told]

    def close(self) -> None:
        """Let devices and processes go."""
        from vllm.distributed import cleanup_dist_env_and_memory

        with contextlib.suppress(Exception):
            self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()

    # ── what its ranks do ──

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Have every rank carry out a method of the extension; their results.

        Raises:
          EngineError: one failed.
        """
        try:
            answers = self.llm.collective_rpc(f"eggroll_{method}", args=arguments)
        except Exception as error:  # a rank has died
            raise EngineError(f"expected {method} of every rank, got {type(error).__name__}: {error}") from error
        failed = [f"rank {rank}: {told}" for rank, (ok, told) in enumerate(answers) if not ok]
        if failed:
            raise EngineError(f"expected {method} of every rank, got {'; '.join(failed)}")
        return [told for _, told in answers]

    def update(self, step: Step, weights: np.ndarray) -> None:
        """Make a generation's update; what was computed with the old weights is forgotten.

        Raises:
          EngineError: it is not at that generation, or a rank failed.
        """
        if step.generation != self.generation:
            raise EngineError(f"expected an update of generation {self.generation}, got {step.generation}")
        self.call("update", json.dumps(step._asdict()), np.asarray(weights, "<f4").tobytes())
        self.forget()
        self.generation += 1

    def forget(self) -> None:
        """Empty the cache of prefixes, which knows adapters by name and never looks at weights."""
        if not self.llm.reset_prefix_cache():
            raise EngineError("expected an idle engine whose prefix cache can be emptied, got requests that hold it")

    def digest(self) -> list[int]:
        """A number for each rank that stands for all its bits."""
        return self.call("digest")

    def parts_held(self) -> list[list[Part]]:
        """`parts`, as an actor is asked for it."""
        return self.parts

    def save(self) -> list[bytes]:
        """What each rank holds, as a safetensors file; `checkpoint.read_parts` joins them."""
        with tempfile.TemporaryDirectory() as folder:
            self.call("save", folder)
            return [path.read_bytes() for path in sorted(Path(folder).iterdir())]

    def load(self, kept: bytes, generation: int) -> None:
        """Take the weights of a generation out of whole leaves, `checkpoint.pack_kept`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kept.safetensors"
            file.write_bytes(kept)
            self.call("load", str(file))
        self.forget()
        self.generation = generation

    def open_ports(self) -> tuple[str, list[int]]:
        """A host and a free port for each rank, where other engines may meet this one's."""
        host = self.settings.options.get("eggroll_host") or _own_address()
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(self.settings.tensor_parallel)]
            for each in sockets:
                each.bind((host, 0))
            return host, [each.getsockname()[1] for each in sockets]

    def synchronise(self, host: str, ports: list[int], member: int, members: int, generation: int) -> int:
        """Give (member 0) or take weights; returns the bytes of all ranks."""
        sent = sum(self.call("synchronise", host, ports, member, members))
        if member:
            self.forget()
            self.generation = generation
        return sent

    # ── completions ──

    def complete_members(
        self,
        drawn: tuple[int, float],
        first: int,
        rows: Sequence[Sequence[Row]],
        sampling: Sampling,
    ) -> list[list[Written]]:
        """Completions of members `first` on, each of its own rows.

        Args:
          drawn: generation of the noise, and sigma.
          rows: of each member.
        """
        found: list[list[Written]] = []
        size = self.settings.adapters
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            self.call("perturb", drawn[0], drawn[1], first + at, len(some))
            found.extend(self._complete(some, sampling, f"{self.generation}-{drawn[0]}-{first + at}"))
        return found

    def complete_mean(self, rows: Sequence[Row], sampling: Sampling) -> list[Written]:
        """Completions of the mean: a batch of its own, as one adapter of zeros."""
        self.call("perturb", 0, 0.0, 0, 1)
        return self._complete([rows], sampling, f"{self.generation}-mean")[0]

    def _complete(self, rows: Sequence[Sequence[Row]], sampling: Sampling, name: str) -> list[list[Written]]:
        """Names say all that the answer depends on, since the prefix cache goes by them."""
        from vllm.lora.request import LoRARequest

        from eggroll.vllm.extension import PATH

        prompts, asked, adapters = [], [], []
        for number, own in enumerate(rows):
            adapter = LoRARequest(f"{name}-{number}", number + 1, PATH)
            for row in own:
                prompts.append({"prompt_token_ids": list(row.prompt)})
                asked.append(sampling_parameters(sampling, row.seed))
                adapters.append(adapter)
        try:
            outputs = self.llm.generate(prompts, asked, lora_request=adapters, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"expected completions, got {type(error).__name__}: {error}") from error
        written = iter([_written(output.outputs[0]) for output in outputs])
        return [[next(written) for _ in own] for own in rows]


def sampling_parameters(sampling: Sampling, seed: int) -> Any:
    """As vLLM wants them."""
    from vllm import SamplingParams

    drawn = {"top_p": sampling.top_p, "seed": seed} if sampling.temperature > 0 else {}
    return SamplingParams(
        temperature=sampling.temperature, max_tokens=sampling.tokens, stop=list(sampling.stop) or None, **drawn
    )


def _written(output: Any) -> Written:
    return Written(output.text, len(output.token_ids), output.finish_reason == "stop")


def _settle_environment(settings: EngineSettings) -> None:
    """Before vLLM is imported. A CPU without these packs threads onto each other's cores."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    if settings.tensor_parallel == 1:
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cores[rank % len(cores)]) for rank in range(settings.tensor_parallel)
        )
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _started(kind: Any, settings: EngineSettings) -> Any:
    options = {name: value for name, value in settings.options.items() if not name.startswith("eggroll_")}
    lora = next((rank for rank in _RANKS if rank >= settings.mean.rank), None)
    if lora is None:
        raise UsageError(f"expected --rank of at most {_RANKS[-1]}, got {settings.mean.rank}; lower it")
    try:
        return kind(
            model=settings.model,
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            worker_extension_cls=EXTENSION,
            enable_lora=True,
            max_loras=settings.adapters,
            max_cpu_loras=settings.adapters,
            max_lora_rank=lora,
            lora_target_modules=list(settings.targets),
            max_model_len=settings.context or None,
            **{"enforce_eager": True, "disable_log_stats": True, "seed": 0} | options,
        )
    except UsageError:
        raise
    except Exception as error:  # vLLM raises nearly anything
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"expected vLLM to start with {settings.model}, got {why[-1][:300]}; change it") from error


def _own_address() -> str:
    """Of this machine, as others see it; loopback where there is no way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found, contextlib.suppress(OSError):
        found.connect(("10.255.255.255", 1))
        return str(found.getsockname()[0])
    return "127.0.0.1"
