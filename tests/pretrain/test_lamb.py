"""LAMB against its formula (You et al. 2020, algorithm 2), and what a configuration may say of it."""

import json
from pathlib import Path

import pytest
import torch

from data_prep.errors import InputError
from pretrain.ds_config import BatchLayout, read_ds_config, with_layout
from pretrain.lamb import Lamb, lamb_of

ROOT = Path(__file__).parents[2]
OPTIONS = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "always_adapt": True}


def by_formula(parameter: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Two moments, bias-corrected, and a step as long as the parameter's own norm has it."""
    m, v = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        parameter = parameter - 0.01 * parameter.norm() / update.norm() * update
    return parameter


@pytest.mark.parametrize("clipping", [0.0, 1.5])
def test_each_parameter_moves_as_the_formula_has_it(clipping):
    torch.manual_seed(0)
    shapes = [(5, 4), (7,), (3, 3)]
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    gradients = [[torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(4)]
    norms = [torch.cat([g.flatten() for g in step]).norm() for step in gradients]
    scales = [min(1.0, clipping / norm) if clipping else 1.0 for norm in norms]
    expected = [
        by_formula(parameter.detach(), [scale * step[i] for scale, step in zip(scales, gradients, strict=True)])
        for i, parameter in enumerate(parameters)
    ]
    optimizer = Lamb([{"params": parameters[:1]}, {"params": parameters[1:]}], clipping, **OPTIONS)
    for step, norm in zip(gradients, norms, strict=True):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        assert float(optimizer._global_grad_norm) == pytest.approx(float(norm))
    for found, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=0)


def test_the_preset_is_read_and_deepspeed_is_handed_the_optimizer():
    content = read_ds_config(str(ROOT / "ds_configs" / "cornbert_lamb.json"))
    given = with_layout(content, BatchLayout.of(1600, 8, 200))
    assert "optimizer" not in given
    assert given["gradient_clipping"] == 0
    optimizer = lamb_of(content, [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    adam = read_ds_config(str(ROOT / "ds_configs" / "zero2.json"))
    assert lamb_of(adam, []) is None
    assert with_layout(adam, BatchLayout.of(2000, 8, 64))["optimizer"] == adam["optimizer"]


@pytest.mark.parametrize(
    ("source", "changed", "message"),
    [
        ("cornbert_lamb", {"zero_optimization": {"stage": 2}}, "optimizer.type Lamb with zero_optimization.stage 2"),
        ("cornbert_lamb", {"optimizer": {"type": "AdamW"}}, "stage must be 1 or 2 with Adam or AdamW, and is 0"),
        ("cornbert_lamb", {"optimizer": {"type": "Lamb", "params": {"fused": True}}}, "unknown key 'fused'"),
        ("cornbert_lamb", {"optimizer": {"type": "Lion"}}, "optimizer.type 'Lion': give Adam or AdamW, or Lamb"),
        ("zero2", {"optimizer": {"type": "Lamb"}}, "remove zero_optimization"),
    ],
)
def test_an_optimizer_that_contradicts_zero_is_refused(tmp_path, source, changed, message):
    content = json.loads((ROOT / "ds_configs" / f"{source}.json").read_text()) | changed
    (tmp_path / "ds.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_ds_config(str(tmp_path / "ds.json"))
