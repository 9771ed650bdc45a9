"""What a DeepSpeed configuration may say, and what is made of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime import lr_schedules

from data_prep.errors import InputError
from pretrain.ds_config import matmul_dtype, read_ds_config, with_steps

ROOT = Path(__file__).parents[2]
STEPS = 20


@pytest.fixture
def altered(tmp_path, ds_config) -> Callable[..., Path]:
    """A function that writes the DeepSpeed configuration with keys replaced, or, where None, removed."""

    def write(**changed: object) -> Path:
        content = json.loads(ds_config().read_text()) | changed
        path = tmp_path / "altered.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def autocast(**content: object) -> dict:
    return {"torch_autocast": content}


def zero(**content: object) -> dict:
    return {"zero_optimization": {"stage": 2, **content}}


def adam(**parameters: object) -> dict:
    return {"optimizer": {"type": "AdamW", "params": parameters}}


def schedule(kind: str = "WarmupDecayLR", **parameters: object) -> dict:
    return {"scheduler": {"type": kind, "params": parameters}}


def decay(**changed: object) -> dict:
    return schedule(**{"total_num_steps": STEPS, "warmup_num_steps": 5} | changed)


# The file.


def test_a_ds_config_that_is_no_json_is_refused(refused, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{\n "train_batch_size": 8,\n}')
    line = refused("--ds_config", path)
    assert f"{path}: not JSON" in line
    assert "line 2" in line or "line 3" in line


def test_a_key_that_stands_twice_in_a_ds_config_is_named(altered):
    path = altered()
    path.write_text(path.read_text().replace("{", '{"train_batch_size": 4, ', 1))
    with pytest.raises(InputError, match=f"{path}: .*'train_batch_size' stands there twice"):
        read_ds_config(str(path))


def test_a_number_that_is_none_is_no_json(altered):
    path = altered(gradient_clipping=float("nan"))
    with pytest.raises(InputError, match=f"{path}: not JSON: NaN is no number"):
        read_ds_config(str(path))


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("[!f]*.json")), ids=lambda path: path.stem)
def test_the_examples_are_taken(path):
    content = read_ds_config(str(path))
    assert with_steps(content, None, str(path)) == (content, content["scheduler"]["params"]["total_num_steps"])


# Keys and values.


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_batchsize": 8}, "unknown key 'train_batchsize'; known are "),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps follows from "),
        ({"bf16": {"enabled": True}}, "bf16 and fp16 would round the temperature"),
        ({"train_batch_size": None}, "train_batch_size is missing"),
        ({"train_batch_size": "auto"}, "train_batch_size is missing or no whole number"),
        ({"train_batch_size": 0}, "train_batch_size must be a whole number of at least 1, not 0"),
        ({"train_micro_batch_size_per_gpu": 0}, "at least 1"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "train_micro_batch_size_per_gpu must be a whole number of at"),
        ({"steps_per_print": 0}, "steps_per_print must be a whole number of at least 1, not 0"),
        ({"gradient_clipping": "auto"}, 'gradient_clipping must be a number of at least 0, not "auto"'),
        ({"gradient_clipping": True}, "gradient_clipping must be a number of at least 0, not true"),
        ({"communication_data_type": "fp16"}, 'communication_data_type must be "fp32" or "bf16", not "fp16"'),
        (autocast(enabled=True, dtype="float16"), 'torch_autocast.dtype must be bfloat16, not "float16"'),
        (autocast(enabled=True, dtype="float8"), 'torch_autocast.dtype must be bfloat16, not "float8"'),
        (autocast(enabled=False, dtype="float8"), "torch_autocast.dtype must be bfloat16"),
        (autocast(enabled=True, dtype=["bfloat16"]), "torch_autocast.dtype must be bfloat16"),
        (autocast(enabled=True), "torch_autocast.dtype must be bfloat16, not null"),
        (autocast(enabled="no", dtype="bfloat16"), 'torch_autocast.enabled must be true or false, not "no"'),
        (autocast(enabled=1, dtype="bfloat16"), "torch_autocast.enabled must be true or false, not 1"),
        (autocast(lower_precision_safe_modules="Linear"), "lower_precision_safe_modules must be a list of classes"),
        (autocast(lower_precision_safe_modules=["torch.nn.Linar"]), "lower_precision_safe_modules must be a list"),
        ({"torch_autocast": True}, "torch_autocast: not a JSON object"),
        ({"zero_optimization": 3}, "zero_optimization: not a JSON object"),
        ({"zero_optimization": []}, "zero_optimization: not a JSON object"),
        (zero(stage=7), "zero_optimization.stage must be 1 or 2 with Adam or AdamW, and is 7"),
        (zero(stage=3), "zero_optimization.stage must be 1 or 2 with Adam or AdamW, and is 3"),
        (zero(stage="2"), "zero_optimization.stage must be 1 or 2 with Adam or AdamW, and is '2'"),
        (zero(overlap=True), "zero_optimization: 'overlap' is not supported, remove it; supported are "),
        (zero(compute_grad_norm=False), "'compute_grad_norm' is not supported"),
        (zero(offload_optimizer={"device": "cpu"}), "'offload_optimizer' is not supported"),
        (zero(offload_param={"device": "cpu"}), "'offload_param' is not supported"),
        (zero(cpu_offload=True), "'cpu_offload' is not supported"),
        (zero(elastic_checkpoint=True), "'elastic_checkpoint' is not supported"),
        (zero(overlap_comm="no"), 'zero_optimization.overlap_comm must be true or false, not "no"'),
        (zero(reduce_bucket_size="auto"), 'reduce_bucket_size must be a whole number of at least 1, not "auto"'),
        (zero(allgather_bucket_size=0), "allgather_bucket_size must be a whole number of at least 1, not 0"),
        (zero(reduce_bucket_size=1.5), "reduce_bucket_size must be a whole number of at least 1, not 1.5"),
        ({"optimizer": None}, "optimizer is missing"),
        ({"optimizer": {"type": "AdamW", "params": None}}, "optimizer.params: not a JSON object"),
        (adam(lr="1e-3"), 'optimizer.params.lr must be a number of at least 0, not "1e-3"'),
        (adam(lr=True), "optimizer.params.lr must be a number of at least 0, not true"),
        (adam(eps=-1e-6), "optimizer.params.eps must be a number of at least 0, not -1e-06"),
        (adam(weight_decay=None), "optimizer.params.weight_decay must be a number of at least 0, not null"),
        (adam(betas=0.9), "optimizer.params.betas must be two numbers from 0.0 to below 1.0, as [0.9, 0.98], not 0.9"),
        (adam(betas=[0.9]), "optimizer.params.betas must be two numbers"),
        (adam(betas=[0.9, 1.0]), "optimizer.params.betas must be two numbers"),
        (adam(betas=["0.9", 0.98]), "optimizer.params.betas must be two numbers"),
        (adam(torch_adam="no"), 'optimizer.params.torch_adam must be true or false, not "no"'),
        (adam(fused=True), 'optimizer.params.fused is of PyTorch\'s Adam; add "torch_adam": true'),
        ({"scheduler": None}, "scheduler is missing"),
        ({"scheduler": {"type": ["WarmupLR"]}}, "scheduler.type ['WarmupLR']: give one of "),
        (schedule(warmup_num_steps=5), "total_num_steps is missing; set it or --steps"),
        (schedule("WarmupLR", warmup_num_steps=5), "scheduler WarmupLR does not say how many steps"),
        (schedule("OneCycle", cycle_min_lr=0.0), "scheduler.params.cycle_max_lr is missing; OneCycle needs it"),
        (decay(warmup_num_steps="auto"), 'warmup_num_steps must be a whole number of at least 1, not "auto"'),
        (decay(warmup_num_steps=5.0), "warmup_num_steps must be a whole number of at least 1, not 5.0"),
        (decay(total_num_steps=-1), "scheduler.params.total_num_steps must be a whole number of at least 1, not -1"),
        (decay(warmup_max_lr="4e-4"), 'scheduler.params.warmup_max_lr must be a number of at least 0, not "4e-4"'),
        (decay(warmup_max_lr=None), "scheduler.params.warmup_max_lr must be a number of at least 0, not null"),
        (decay(warmup_type="cosine"), 'scheduler.params.warmup_type must be linear or log, not "cosine"'),
        (decay(last_batch_iteration=7), "scheduler.params: unknown key 'last_batch_iteration'"),
        (
            schedule("OneCycle", cycle_min_lr=0.0, cycle_max_lr=1e-3, cycle_momentum="no"),
            'scheduler.params.cycle_momentum must be true or false, not "no"',
        ),
    ],
)
def test_a_key_of_a_ds_config_that_cannot_be_used_is_named(altered, changed, said):
    path = str(altered(**changed))
    with pytest.raises(InputError) as error:
        with_steps(read_ds_config(path), None, path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_program_ends_in_that_line(refused, altered):
    path = altered(**autocast(enabled=True, dtype="float16"))
    assert f"{path}: torch_autocast.dtype must be bfloat16" in refused("--ds_config", path)


@pytest.mark.parametrize(
    "changed",
    [
        zero(overlap_comm=True, reduce_bucket_size=5e8, allgather_bucket_size=500_000_000),
        autocast(enabled=True, dtype="bfloat16", lower_precision_safe_modules=["torch.nn.Linear"]),
        autocast(enabled=False),
        adam(lr=0, betas=[0.0, 0.98], weight_decay=0, torch_adam=True, foreach=False),
        schedule("WarmupLR", warmup_max_lr=None, warmup_num_steps=5),
        schedule("WarmupCosineLR", warmup_num_steps=5, cos_min_ratio=0),
        schedule("OneCycle", cycle_min_lr=0.0, cycle_max_lr=1e-3, cycle_first_step_size=10, decay_step_size=0),
        schedule("LRRangeTest", lr_range_test_step_size=10, lr_range_test_staircase=True),
        {"communication_data_type": "bf16"},
    ],
)
def test_what_deepspeed_takes_is_taken(altered, changed):
    path = str(altered(**changed))
    content, steps = with_steps(read_ds_config(path), STEPS, path)
    assert steps == STEPS
    scheduler = content["scheduler"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = getattr(lr_schedules, scheduler["type"])(torch.optim.AdamW([parameter]), **scheduler["params"])
    schedule.step()


# What is made of it.


def test_a_warm_up_longer_than_the_run_is_refused(refused, ds_config):
    line = refused("--steps", 5)
    assert str(ds_config()) in line
    assert "warmup_num_steps 5 does not" in line
    assert "--steps" in line


def test_a_warm_up_that_is_not_given_is_as_long_as_deepspeed_makes_it(altered):
    path = str(altered(**schedule(total_num_steps=1000)))
    with pytest.raises(InputError, match="warmup_num_steps 1000, DeepSpeed's default, does not leave a run of 1000 st"):
        with_steps(read_ds_config(path), None, path)
    content, steps = with_steps(read_ds_config(path), 1001, path)
    assert (content["scheduler"]["params"], steps) == ({"total_num_steps": 1001}, 1001)


def test_a_schedule_is_told_the_steps_of_the_command_line(altered):
    path = str(altered(**schedule(warmup_num_steps=5)))
    content, _ = with_steps(read_ds_config(path), 30, path)
    assert content["scheduler"]["params"] == {"warmup_num_steps": 5, "total_num_steps": 30}


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "torch.bfloat16"])
@pytest.mark.parametrize(("enabled", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrices_are_multiplied_in_the_type_of_autocast(altered, dtype, enabled, expected):
    assert matmul_dtype(read_ds_config(str(altered(**autocast(enabled=enabled, dtype=dtype))))) == expected


def test_matrices_are_multiplied_in_fp32_without_it(altered):
    assert matmul_dtype(read_ds_config(str(altered()))) == torch.float32
