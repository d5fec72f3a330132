"""Which group of `--help` a flag stands in, and where there: one table for all commands."""

from __future__ import annotations

from collections.abc import Iterable

from eggroll.cli.flags import Flag

GROUPS = ("algorithm", "data", "run", "hardware")

_TABLE = {
    "algorithm": """
        preset algorithm objective population_size group_size generations sigma sigma_shift sigma_decay rank noise_reuse
        law optimizer learning_rate rate_units learning_rate_decay alpha alpha_decay decay beta1_shift beta2_shift
        shaping clip epochs policy layers width hidden parameters state batch length seq_len normalize_observations
        deterministic common_random_numbers episodes episode_length num_envs levels inputs quantised reach trainable
        frozen lora_rank lora_alpha risk_aversion samples pass_k temperature top_p tokens bytes rounds widths ranks
        outputs policy_population policy_steps tune
    """,
    "data": """
        env task task_data task_options model teacher start_from base data prompt prompts prompt_tokens template system
        stop tokenizer side quantity decisions interval markets market_messages held_out sample calibration days
        messages price validation_bytes validation_prompts validation_samples validation_episodes
    """,
    "run": """
        run_dir resume on_change seed seeds generation to quick repeats max_seconds target validate_every sample_bytes
        snapshot_every snapshots_kept log_every track render out png export json patience
    """,
    "hardware": """
        devices chunk_size update dtype precision chip intensity tensor_parallel engine_options ray workers worker_gpus
        listen lease_seconds coordinator processes process start_timeout peer_timeout
    """,
}
"""Group → fields, in the order in which they are shown."""

_OTHERWISE = {("trade generate", "levels"): "data", ("doctor", "parameters"): "data"}
"""Fields that another command uses the name of for something else."""

_ALONE = "coordinator processes process start_timeout peer_timeout"
_FLEET = "ray workers worker_gpus listen lease_seconds"
_UNUSED = {
    "rl": _ALONE,
    "marl": _ALONE,
    "finetune": _ALONE,
    "distill": _ALONE,
    "vllm": f"{_ALONE} listen devices update",
    "trade execute": f"{_ALONE} job",
    "trade pretrain": f"{_ALONE} {_FLEET} job population_size sigma sigma_decay rank chunk_size devices update",
}
"""Command → fields that it has by inheritance and refuses, or that say nothing there: they are not shown."""


def is_shown(command: str, flag: Flag) -> bool:
    """Whether `--help` of the command tells of a flag."""
    return flag.field not in _UNUSED.get(command, "").split()


def group_of(command: str, field: str) -> str | None:
    """The group of a field; None where the table lacks it."""
    listed = (group for group, fields in _TABLE.items() if field in fields.split())
    return _OTHERWISE.get((command, field)) or next(listed, None)


def grouped(command: str, flags: Iterable[Flag]) -> dict[str, list[Flag]]:
    """Group → its flags as they are shown; those that no table has come last in "run"."""
    order = {field: place for place, field in enumerate(" ".join(_TABLE.values()).split())}
    shown = [flag for flag in flags if not flag.positional and is_shown(command, flag)]
    shown.sort(key=lambda flag: order.get(flag.field, len(order)))
    groups = {name: [flag for flag in shown if (group_of(command, flag.field) or "run") == name] for name in GROUPS}
    return {name: own for name, own in groups.items() if own}
