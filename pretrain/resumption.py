"""Whether a run may go on from a checkpoint, and how."""

import time
from pathlib import Path

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from pretrain import checkpoint, ranks
from pretrain.config import ModelConfig, RunConfig

# Fields of RunConfig that decide what is learnt: a checkpoint goes on only with the same.
OBJECTIVE = (
    *("mask_rate", "late_mask_rate", "late_mask_from", "mask_span"),
    *("mgm_weight", "ngsp_weight", "srm_weight", "srm_loss", "srm_negatives"),
)

SECONDS_TO_SEE = 60  # a network file system may tell a node late what another one wrote


def identity_of(manifest: dict, config: RunConfig, ds_config: dict) -> dict:
    """What a run must keep to be the same run; not its ranks, rounds and precision."""
    return {
        "motifs": manifest["motifs"],
        "shards": manifest["fingerprint"],
        "seed": config.seed,
        "global_batch": ds_config["train_batch_size"],
        "optimizer": ds_config["optimizer"]["type"].lower(),
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


def for_ranks_of_now(ds_config: dict, resumed: Path | None) -> dict:
    """The DeepSpeed configuration that loads a checkpoint, if any, in its universal form where other ranks wrote it."""
    if not (resumed and checkpoint.is_of_other_ranks(resumed, ds_config)):
        return ds_config
    return ds_config | {"checkpoint": {"load_universal": True}}


def best_of(resumed: Path | None) -> dict | None:
    """The held-out metrics of the run's best checkpoint so far, where it is still there."""
    best = checkpoint.read_state(resumed)["best"] if resumed else None
    there = best and checkpoint.fault(resumed.with_name(checkpoint.name_of(best["step"]))) is None
    return best if there else None


def check_shared(path: Path) -> None:
    """Raise `InputError` on all ranks where one does not see a file of the run folder that the first rank has written.

    Each rank writes its part of a checkpoint: in folders of their own none would be whole. A collective.
    """
    written = ranks.gathered(sha256_of_file(path) if ranks.is_first() else None)[0]
    until = time.monotonic() + SECONDS_TO_SEE
    while not (sees := path.is_file() and sha256_of_file(path) == written) and time.monotonic() < until:
        time.sleep(0.2)
    blind = next((rank for rank, other in enumerate(ranks.gathered(sees)) if not other), None)
    if blind is not None:
        raise InputError(f"{path}: rank {blind} does not see what rank 0 wrote there; all nodes must share --out")
