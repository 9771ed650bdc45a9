"""The DeepSpeed configuration: read, checked, and completed with the batch layout of this cluster."""

import inspect
import json
import math
import pydoc
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.runtime import lr_schedules

from data_prep.errors import InputError

KNOWN_KEYS = {
    "activation_checkpointing",
    "comms_logger",
    "communication_data_type",
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
BFLOAT16 = ("bfloat16", "bf16", "torch.bfloat16")
AUTOCAST_PARAMETERS = {"enabled", "dtype", "lower_precision_safe_modules"}
# The others, which offload, quantise, or are for stage 3, would break probe, checkpoint or trainer, or do nothing.
ZERO_FLAGS = {
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_scatter",
    "use_multi_rank_bucket_allreduce",
}
ZERO_SIZES = {"allgather_bucket_size", "reduce_bucket_size"}
OPTIMIZER_NUMBERS = {"lr", "eps", "weight_decay"}
ADAM_PARAMETERS = {*OPTIMIZER_NUMBERS, "betas", "torch_adam", "adam_w_mode", "amsgrad", "fused", "foreach"}
LAMB_PARAMETERS = {*OPTIMIZER_NUMBERS, "betas", "always_adapt", "bias_correction", "trust_clip"}
WARMUP_TYPES = (lr_schedules.WARMUP_LINEAR_RATE, lr_schedules.WARMUP_LOG_RATE)


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
        text = Path(path).read_text()
        content = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
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
    _check_known(content, KNOWN_KEYS, path)
    for key, type_ in (("optimizer", dict), ("scheduler", dict), ("train_batch_size", int)):
        if not isinstance(content.get(key), type_):
            raise InputError(f"{path}: {key} is missing or no {'object' if type_ is dict else 'whole number'}")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "steps_per_print"):
        count = content.get(key, 1)
        _check(_is_whole(count, least=1), f"{path}: {key}", "a whole number of at least 1", count)
    clipping = content.get("gradient_clipping", 0.0)
    _check(_is_number(clipping, least=0), f"{path}: gradient_clipping", "a number of at least 0", clipping)
    sent = content.get("communication_data_type", "fp32")
    _check(sent in ("fp32", "bf16"), f"{path}: communication_data_type", '"fp32" or "bf16"', sent)
    _check_autocast(content.get("torch_autocast", {}), f"{path}: torch_autocast")
    _check_optimizer(content["optimizer"], f"{path}: optimizer")
    _check_zero(content.get("zero_optimization", {}), is_lamb(content), path)
    _check_scheduler(content["scheduler"], f"{path}: scheduler")
    return content


def with_steps(content: dict, steps: int | None, path: str) -> tuple[dict, int]:
    """The configuration with its schedule over `steps` steps (default: as it stands), and the number of steps."""
    scheduler = content["scheduler"]
    parameters, defaults = dict(scheduler.get("params", {})), _schedule_parameters(scheduler["type"])
    total = steps or parameters.get("total_num_steps")
    if total is None and "total_num_steps" not in defaults:
        raise InputError(f"{path}: scheduler {scheduler['type']} does not say how many steps a run has; give --steps")
    if total is None:
        raise InputError(f"{path}: scheduler.params.total_num_steps is missing; set it or --steps")
    if "total_num_steps" in defaults:
        parameters["total_num_steps"] = total
    warmup = parameters.get("warmup_num_steps", defaults.get("warmup_num_steps", 0))
    if warmup >= total:
        default = "" if "warmup_num_steps" in parameters else ", DeepSpeed's default,"
        raise InputError(
            f"{path}: warmup_num_steps {warmup}{default} does not leave a run of {total} steps to decay "
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


def matmul_dtype(content: dict) -> torch.dtype:
    """The type in which matrices are multiplied; parameters are fp32."""
    return torch.bfloat16 if content.get("torch_autocast", {}).get("enabled") else torch.float32


def _check_autocast(content: object, where: str) -> None:
    _check_known(content, AUTOCAST_PARAMETERS, where)
    _check_flags(content, {"enabled"}, where)
    # Without a dtype DeepSpeed leaves it to PyTorch, whose own on CUDA is float16; that needs a loss scale.
    if content.get("enabled") or "dtype" in content:
        _check(content.get("dtype") in BFLOAT16, f"{where}.dtype", "bfloat16", content.get("dtype"))
    modules = content.get("lower_precision_safe_modules", [])
    known = isinstance(modules, list) and all(isinstance(name, str) and pydoc.locate(name) for name in modules)
    _check(known, f"{where}.lower_precision_safe_modules", 'a list of classes, as ["torch.nn.Linear"]', modules)


def _check_zero(content: object, lamb: bool, path: str) -> None:
    where = f"{path}: zero_optimization"
    known = {"stage", *ZERO_FLAGS, *ZERO_SIZES}
    if isinstance(content, dict) and set(content) - known:
        first = min(set(content) - known)
        raise InputError(f"{where}: {first!r} is not supported, remove it; supported are {', '.join(sorted(known))}")
    _check_known(content, known, where)
    stage = content.get("stage", 0)
    if lamb and stage != 0:
        raise InputError(
            f"{path}: optimizer.type Lamb with zero_optimization.stage {stage}: ZeRO cuts the parameters whose norms "
            "LAMB compares; remove zero_optimization"
        )
    if not lamb and not (_is_whole(stage, least=1) and stage <= 2):
        raise InputError(f"{where}.stage must be 1 or 2 with Adam or AdamW, and is {stage!r}")
    _check_flags(content, ZERO_FLAGS, where)
    for name in ZERO_SIZES & set(content):
        size = content[name]  # 5e8 is a float
        _check(_is_number(size, least=1) and size == int(size), f"{where}.{name}", "a whole number of at least 1", size)


def _check_optimizer(content: dict, where: str) -> None:
    _check_known(content, {"type", "params"}, where)
    kind, given = content.get("type"), content.get("params", {})
    if str(kind).lower() not in ("adam", "adamw", "lamb"):
        raise InputError(f"{where}.type {kind!r}: give Adam or AdamW, or Lamb without ZeRO")
    known = LAMB_PARAMETERS if str(kind).lower() == "lamb" else ADAM_PARAMETERS
    where = f"{where}.params"
    _check_known(given, known, where)
    _check_numbers(given, OPTIMIZER_NUMBERS, where)
    _check_flags(given, known - OPTIMIZER_NUMBERS - {"betas"}, where)
    betas = given.get("betas", [0.9, 0.999])
    pair = isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, float) and 0 <= b < 1 for b in betas)
    _check(pair, f"{where}.betas", "two numbers from 0.0 to below 1.0, as [0.9, 0.98]", betas)
    of_torch = {"fused", "foreach"} & set(given)
    if of_torch and not given.get("torch_adam"):
        raise InputError(f'{where}.{min(of_torch)} is of PyTorch\'s Adam; add "torch_adam": true, or remove it')


def _check_scheduler(content: dict, where: str) -> None:
    _check_known(content, {"type", "params"}, where)
    kind, given = content.get("type"), content.get("params", {})
    if kind not in lr_schedules.VALID_LR_SCHEDULES:
        raise InputError(f"{where}.type {kind!r}: give one of {', '.join(lr_schedules.VALID_LR_SCHEDULES)}")
    where, defaults = f"{where}.params", _schedule_parameters(kind)
    _check_known(given, set(defaults), where)
    for name, default in defaults.items():
        value = given.get(name, default)
        if value is inspect.Parameter.empty and name != "total_num_steps":  # which --steps may give
            raise InputError(f"{where}.{name} is missing; {kind} needs it")
        if name not in given or value is default is None:
            continue
        if isinstance(default, bool):
            _check_flags(given, {name}, where)
        elif isinstance(default, str):
            _check(value in WARMUP_TYPES, f"{where}.{name}", " or ".join(WARMUP_TYPES), value)
        elif name.endswith(("_steps", "_size", "_count")):
            least = 0 if default in (0, None) else 1
            _check(_is_whole(value, least), f"{where}.{name}", f"a whole number of at least {least}", value)
        else:
            _check_numbers(given, {name}, where)


def _schedule_parameters(kind: str) -> dict[str, object]:
    """Those of a DeepSpeed schedule that are the user's, and their defaults, `inspect.Parameter.empty` for none."""
    parameters = inspect.signature(getattr(lr_schedules, kind)).parameters
    ours = ("optimizer", "last_batch_iteration")
    return {name: parameter.default for name, parameter in parameters.items() if name not in ours}


def _check_known(content: object, known: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object")
    unknown = sorted(set(content) - known)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _check_numbers(content: dict, names: set[str], where: str) -> None:
    for name in sorted(names & set(content)):
        _check(_is_number(content[name], least=0), f"{where}.{name}", "a number of at least 0", content[name])


def _check_flags(content: dict, names: set[str], where: str) -> None:
    for name in sorted(names & set(content)):
        _check(isinstance(content[name], bool), f"{where}.{name}", "true or false", content[name])


def _check(holds: bool, where: str, what: str, value: object) -> None:
    if not holds:
        raise InputError(f"{where} must be {what}, not {json.dumps(value)}")


def _is_number(value: object, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= least


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _no_duplicates(pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return content
