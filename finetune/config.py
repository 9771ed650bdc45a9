"""What the user decides of a fine-tuning run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data_prep.errors import InputError


@dataclass(frozen=True)
class FinetuneConfig:
    task: str = field(metadata={"help": "promoter, tfbs, hscr, splice or expression."})
    data: str | None = field(
        default=None, metadata={"help": "Folder of the task's tables, or of one folder for each; default: data/TASK."}
    )
    checkpoint: str = field(
        default="runs/genebert",
        metadata={"help": "Folder that pretrain/convert.py wrote, or of a BERT or RoBERTa such as DNABERT."},
    )
    out: str | None = field(default=None, metadata={"help": "Folder to write; default: runs/finetune-TASK."})
    models: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to compare: pretrained, scratch (same shape, new weights), and the task's baselines; "
            "default: all of them."
        },
    )
    modality: Literal["sequence", "multimodal"] = field(
        default="sequence",
        metadata={"help": "multimodal: the region encoder reads the binding matrix scanned from the sequences too."},
    )
    epochs: float = field(default=3.0, metadata={"help": "Passes over the training rows."})
    batch_size: int = field(default=32, metadata={"help": "Rows in a step, on each device."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak, after a linear warm-up over a tenth of the steps; default: 5e-5 for an encoder of width 768,"
            " and in inverse proportion for others; with --unfreeze 2e-3, the head's."
        },
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Of the optimizer."})
    optimizer: Literal["adamw", "lamb"] = field(default="adamw", metadata={"help": "LAMB is CornBERT's."})
    freeze: bool = field(default=False, metadata={"help": "Train the head alone: a linear probe."})
    lora: int | None = field(
        default=None, metadata={"help": "Rank of LoRA on queries and values, beside the head; the encoder is frozen."}
    )
    unfreeze: int | None = field(
        default=None,
        metadata={
            "help": "Steps after which the next two layers from the top are trained as well, each pair at half of the "
            "learning rate above it (CornBERT: 400)."
        },
    )
    rc: bool = field(
        default=False,
        metadata={"help": "Train on both strands, and average over both at test time; of tasks without a strand."},
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "balanced: rare classes weigh more in the loss, in inverse proportion."}
    )
    early_stopping: int | None = field(
        default=None,
        metadata={
            "help": "Epochs without a better loss on dev after which to stop; the best epoch's weights are kept."
        },
    )
    context: list[int] = field(
        default_factory=lambda: [80, 256, 400, 2000],
        metadata={"help": "Of splice: nucleotides around a predicted one, a row of the results for each."},
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16."})
    deepspeed: str | None = field(
        default=None, metadata={"help": "DeepSpeed's configuration, for several GPUs under torchrun or deepspeed."}
    )
    local_rank: int = field(default=-1, metadata={"help": "Given by the deepspeed launcher; not for users."})
    seed: int = field(default=0, metadata={"help": "Decides new weights and the order of rows."})
    seeds: int = field(
        default=1, metadata={"help": "Train with so many seeds, from --seed on; scores are means, with their spread."}
    )
    dedup: bool = field(default=False, metadata={"help": "Drop rows that recur within or across splits."})
    wandb: Literal["off", "offline", "online"] = field(default="off", metadata={"help": "Log to W&B."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what --out holds."})

    def check(self) -> None:
        """Raise `InputError` for values that no run can have."""
        least = {
            "batch_size": 1,
            "seed": 0,
            "weight_decay": 0,
            "seeds": 1,
            "lora": 1,
            "unfreeze": 1,
            "early_stopping": 1,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"--{name} {value}: give at least {smallest}")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: must be above 0")
        ways = [name for name in ("freeze", "lora", "unfreeze") if getattr(self, name)]
        if len(ways) > 1:
            raise InputError(f"--{ways[0]} and --{ways[1]}: give one of them")
