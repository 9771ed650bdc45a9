"""The DeepSpeed configuration: read, checked, and completed with the batch layout of this cluster."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path

from deepspeed.runtime import lr_schedules
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from data_prep.errors import InputError

KNOWN_KEYS = {
    "activation_checkpointing",
    "comms_logger",
    "communication_data_type",
    "data_types",
    "dump_state",
    "flops_profiler",
    "gradient_clipping",
    "memory_breakdown",
    "optimizer",
    "prescale_gradients",
    "scheduler",
    "steps_per_print",
    "torch_autocast",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_optimization",
}


KNOWN_PARAMETERS = {
    "torch_autocast": {"enabled", "dtype", "lower_precision_safe_modules"},
    "optimizer": {"type", "params"},
    "scheduler": {"type", "params"},
}
ADAM_PARAMETERS = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "amsgrad", "fused", "foreach"}
LAMB_PARAMETERS = {"lr", "betas", "eps", "weight_decay", "always_adapt", "bias_correction", "trust_clip"}


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch lies over ranks: `accumulation` rounds of `world_size` micro-batches.

    Slots past the global batch are padding of weight zero: 4 nodes of 8 GPUs train a batch of 2000 exactly.
    """

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int

    @classmethod
    def of(cls, global_batch: int, world_size: int, largest_micro_batch: int | None) -> "BatchLayout":
        """The fewest rounds of micro-batches no larger than `largest_micro_batch`, then the smallest micro-batch.

        Raises `InputError` for a batch of fewer samples than ranks.
        """
        if global_batch < world_size:
            raise InputError(
                f"train_batch_size {global_batch} leaves {world_size - global_batch} of {world_size} ranks without a "
                f"sample; give a batch of at least {world_size}, or start fewer ranks"
            )
        largest = largest_micro_batch or -(-global_batch // world_size)
        accumulation = -(-global_batch // (world_size * largest))
        return cls(global_batch, world_size, -(-global_batch // (world_size * accumulation)), accumulation)

    @property
    def slots(self) -> int:
        return self.micro_batch * self.world_size * self.accumulation


def read_ds_config(path: str) -> dict:
    """The file's content. Raises `InputError` where it is not JSON, lacks a key, or has one that is not the user's."""
    try:
        content = json.loads(Path(path).read_text(), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise InputError(f"--ds_config {path}: {error.strerror}; ds_configs/ holds examples") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    if "gradient_accumulation_steps" in content:
        raise InputError(
            f"{path}: gradient_accumulation_steps follows from train_batch_size and the number of GPUs; remove it"
        )
    if {"bf16", "fp16"} & set(content):
        raise InputError(
            f'{path}: bf16 and fp16 would round the temperature; write "torch_autocast": '
            '{"enabled": true, "dtype": "bfloat16"}, which computes in bf16 and keeps parameters in fp32'
        )
    unknown = sorted(set(content) - KNOWN_KEYS)
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(KNOWN_KEYS))}")
    try:
        DeepSpeedZeroConfig(**content.get("zero_optimization", {}))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise InputError(f"{path}: zero_optimization {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for key, type_ in (("optimizer", dict), ("scheduler", dict), ("train_batch_size", int)):
        if not isinstance(content.get(key), type_):
            raise InputError(f"{path}: {key} is missing or no {'object' if type_ is dict else 'whole number'}")
    _check_parameters(content, path)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
        if not _is_count(content.get(key, 1)):
            raise InputError(f"{path}: {key} must be a whole number of at least 1, not {content[key]!r}")
    return content


def with_steps(content: dict, steps: int | None, path: str) -> tuple[dict, int]:
    """The configuration with its schedule over `steps` steps (default: as it stands), and the number of steps."""
    scheduler = content["scheduler"]
    parameters = dict(scheduler.get("params", {}))
    total = steps or parameters.get("total_num_steps")
    if not _is_count(total):
        raise InputError(f"{path}: scheduler.params.total_num_steps is missing or no whole number; set it or --steps")
    if "total_num_steps" in parameters:
        parameters["total_num_steps"] = total
    warmup = parameters.get("warmup_num_steps", 1)
    if not _is_count(warmup):
        raise InputError(f"{path}: scheduler.params.warmup_num_steps must be a whole number, not {warmup!r}")
    if warmup >= total:
        raise InputError(
            f"{path}: warmup_num_steps {warmup} does not leave a run of {total} steps to decay "
            "in; lower it, or raise --steps"
        )
    return {**content, "scheduler": {**scheduler, "params": parameters}}, total


def with_layout(content: dict, layout: BatchLayout) -> dict:
    """The configuration that DeepSpeed is given: its batch is one round, padding included.

    The rounds are the trainer's: it reduces their gradients together. LAMB and its clipping are `pretrain.lamb`'s.
    """
    if is_lamb(content):
        content = {key: value for key, value in content.items() if key not in ("optimizer", "gradient_clipping")}
        content["gradient_clipping"] = 0.0
    return {
        **content,
        "train_batch_size": layout.micro_batch * layout.world_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": 1,
    }


def is_lamb(content: dict) -> bool:
    """True where the optimizer is LAMB, which DeepSpeed is handed, and not of its own make."""
    return str(content["optimizer"].get("type")).lower() == "lamb"


def _check_parameters(content: dict, path: str) -> None:
    for key, known in KNOWN_PARAMETERS.items():
        _check_known(content.get(key, {}), known, f"{path}: {key}")
    kind = content["optimizer"].get("type")
    if str(kind).lower() not in ("adam", "adamw", "lamb"):
        raise InputError(f"{path}: optimizer.type {kind!r}: give Adam or AdamW, or Lamb without ZeRO")
    parameters = LAMB_PARAMETERS if is_lamb(content) else ADAM_PARAMETERS
    _check_known(content["optimizer"].get("params", {}), parameters, f"{path}: optimizer.params")
    kind = content["scheduler"].get("type")
    if kind not in lr_schedules.VALID_LR_SCHEDULES:
        raise InputError(f"{path}: scheduler.type {kind!r}: give one of {', '.join(lr_schedules.VALID_LR_SCHEDULES)}")
    known = set(inspect.signature(getattr(lr_schedules, kind)).parameters) - {"optimizer"}
    _check_known(content["scheduler"].get("params", {}), known, f"{path}: scheduler.params")
    clipping = content.get("gradient_clipping", 0.0)
    if not isinstance(clipping, int | float) or clipping < 0:
        raise InputError(f"{path}: gradient_clipping must be a number of at least 0, not {clipping!r}")
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if is_lamb(content) and stage != 0:
        raise InputError(
            f"{path}: optimizer.type Lamb with zero_optimization.stage {stage}: ZeRO cuts the parameters whose norms "
            "LAMB compares; remove zero_optimization"
        )
    if not is_lamb(content) and stage not in (1, 2):
        raise InputError(f"{path}: zero_optimization.stage must be 1 or 2 with Adam or AdamW, and is {stage}")


def _check_known(content: object, known: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object")
    unknown = sorted(set(content) - known)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _no_duplicates(pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return content
