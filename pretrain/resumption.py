"""Whether a run may go on from a checkpoint, and how."""

from pathlib import Path

from data_prep.errors import InputError
from pretrain import checkpoint
from pretrain.config import ModelConfig, RunConfig

# Fields of RunConfig that decide what is learnt: a checkpoint goes on only with the same.
OBJECTIVE = (
    *("mask_rate", "late_mask_rate", "late_mask_from", "mask_span"),
    *("mgm_weight", "ngsp_weight", "srm_weight", "srm_loss", "srm_negatives"),
)


def identity_of(manifest: dict, config: RunConfig, global_batch: int) -> dict:
    """What a run must keep to be the same run; not its ranks, rounds and precision."""
    return {
        "motifs": manifest["motifs"],
        "shards": manifest["fingerprint"],
        "seed": config.seed,
        "global_batch": global_batch,
        **{name: getattr(config, name) for name in OBJECTIVE},
    }


def check(resumed: Path, model: ModelConfig, identity: dict, config: RunConfig, steps: int) -> None:
    """Raise `InputError` where a checkpoint is not one of this run, or is past its end."""
    if not config.resume:
        raise InputError(f"{config.out}: holds a checkpoint already; choose another --out, or drop --no_resume")
    checkpoint.check_model(resumed, model)
    checkpoint.check_run(resumed, identity)
    done = checkpoint.read_state(resumed)["step"]
    if done > steps:
        raise InputError(f"{config.out}: {done} steps were done already, more than --steps {steps}; give a larger one")


def for_ranks_of_now(ds_config: dict, resumed: Path) -> dict:
    """The DeepSpeed configuration that loads a checkpoint, in its universal form where other ranks wrote it."""
    if not checkpoint.is_of_other_ranks(resumed, ds_config):
        return ds_config
    return ds_config | {"checkpoint": {"load_universal": True}}
