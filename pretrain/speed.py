"""What makes a model train faster or in less memory without changing what it computes, nor the names of its weights."""

import os
import shutil

import torch
from torch import nn

from data_prep.errors import InputError
from pretrain.config import RunConfig


def prepare(model: nn.Module, config: RunConfig, device: torch.device) -> None:
    """Checkpoint activations and compile the encoders, as the run's configuration asks; before DeepSpeed takes the
    model. Raises `InputError` where that cannot be."""
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        compile_encoders(model, device)


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only each layer's input for the backward pass, and compute the rest again."""
    model.sequence.config.use_cache = False  # a decoder's, of no use here; Transformers warns of it
    model.sequence.gradient_checkpointing_enable({"use_reentrant": False})
    if (region := getattr(model, "region", None)) is not None:
        try:
            region.set_grad_checkpointing()
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise InputError(
                f"--activation_checkpointing: {model.config.region_encoder} has none: {error}; leave it out"
            ) from error


def compile_encoders(model: nn.Module, device: torch.device) -> None:
    """torch.compile the layers of both encoders, in place, at the first pass over each shape: a minute or more."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise InputError(f"--compile on: a CPU needs a C++ compiler, and {compiler} is not there; leave it out")
    for encoder in (model.sequence.base_model.encoder, getattr(model, "region", None)):
        if encoder is not None:
            encoder.compile(dynamic=False)
