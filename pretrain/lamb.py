"""LAMB (You et al. 2020) for runs without ZeRO: its layer-wise trust ratios need whole parameters, which ZeRO cuts."""

import math

import timm.optim
import torch

from pretrain.ds_config import is_lamb


class Lamb(timm.optim.Lamb):
    """timm's LAMB; it clips the gradient to `clipping` (0 for never), and keeps its norm where DeepSpeed looks."""

    def __init__(self, parameter_groups: list[dict], clipping: float, **options):
        super().__init__(parameter_groups, max_grad_norm=None, **options)
        self._clipping = clipping or math.inf
        self._global_grad_norm: torch.Tensor | None = None

    def step(self, closure=None):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self._clipping)
        return super().step(closure)


def lamb_of(ds_config: dict, parameter_groups: list[dict]) -> Lamb | None:
    """The optimizer that DeepSpeed is handed where the configuration names LAMB; None where DeepSpeed makes its own."""
    if not is_lamb(ds_config):
        return None
    parameters = ds_config["optimizer"].get("params", {})
    return Lamb(parameter_groups, ds_config.get("gradient_clipping", 0.0), **parameters)
