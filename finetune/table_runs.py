"""The runs that the papers' tables are made of: data preparation, pre-training, conversion, fine-tuning, as jobs.

All runs of a scale are made in one way (`Scale`); a table varies one thing. Each run has a folder of its own, named
after what it is, so that tables share what they have in common.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.output_folder import MANIFEST
from data_prep.simulate import CELL_TYPE_MOTIFS
from finetune.results import RESULTS
from finetune.table_jobs import ROOT, Job
from pretrain.config import ModelConfig, read_preset
from pretrain.flops import model_flops
from pretrain.weights import DESCRIPTION

PYTHON = sys.executable
LAUNCHER = (str(Path(PYTHON).parent / "deepspeed"), "--include", "localhost:{devices}", "--master_port", "{port}")
SIMULATED = Path("data")  # the folder in which what is missing is simulated
H200 = 989e12  # dense bf16 operations a second
CALCULATED_MFU = 0.26  # of genebert-base on one H200 at batch 2000, in two passes (tests/bench/step_profile.py)


@dataclass(frozen=True)
class Scale:
    """How the runs of a table are made.

    preset, ds_config, batch, steps: of pre-training; steps_of_many: where a table has many; batches: that one table
    varies; pretraining: more arguments; finetuning: arguments by task; probing: arguments where pre-trainings are
    compared on promoters; seeds: of fine-tuning; contexts: of splice sites; cornbert: arguments of CornBERT's
    pre-training; vocabulary: of its tokenizer; explained: genes of the importance of location; simulated:
    whether missing data are simulated.
    """

    name: str
    preset: str
    ds_config: str
    batch: int
    steps: int
    steps_of_many: int
    batches: tuple[int, ...]
    seeds: int
    contexts: tuple[int, ...] = (80, 256, 400, 2000)
    pretraining: tuple[str, ...] = ()
    finetuning: dict[str, tuple[str, ...]] = field(default_factory=dict)
    probing: tuple[str, ...] = ()
    cornbert: tuple[str, ...] = ()
    cornbert_steps: int = 0
    vocabulary: int = 5000
    explained: int = 200
    simulated: bool = False


# Rates, batches and epochs were chosen on the dev sets of another simulated atlas (--seed 1), among those that let a
# table be made in some ten minutes; but for hscr, whose dev set is too small to tell, and the probe's rate, the second
# best there: with the best one weak features collapsed to one class on test.
SMALL = Scale(
    name="small",
    preset="genebert-tiny",
    ds_config="ds_configs/zero2_cpu.json",
    batch=32,
    steps=400,
    steps_of_many=80,
    batches=(4, 8, 16, 32, 64, 128),  # a quarter of the paper's
    seeds=3,
    contexts=(80, 256, 400),
    pretraining=("--max_tokens", "128", "--eval_every", "100", "--save_every", "100", "--wandb", "off"),
    finetuning={
        "tfbs": ("--epochs", "5", "--learning_rate", "1e-3"),
        "hscr": ("--epochs", "6", "--learning_rate", "1e-3", "--batch_size", "64"),
        "splice": ("--epochs", "2", "--learning_rate", "1e-3", "--batch_size", "4", "--seeds", "2"),
        "expression": ("--epochs", "3", "--learning_rate", "1e-3"),
    },
    # With a frozen encoder: fine-tuned whole, all reach the same AUC on the simulated promoters.
    probing=("--freeze", "--epochs", "3", "--learning_rate", "3e-2"),
    cornbert=(
        *("--hidden_size", "128", "--layers", "2", "--heads", "2", "--intermediate_size", "512"),
        *("--eval_every", "100", "--save_every", "100", "--wandb", "off"),
    ),
    cornbert_steps=200,
    vocabulary=500,
    explained=3,
    simulated=True,
)
PAPER = Scale(
    name="paper",
    preset="genebert-base",
    ds_config="ds_configs/zero2.json",
    batch=2000,
    steps=120_000,
    steps_of_many=120_000,
    batches=(16, 32, 64, 128, 256, 512),
    seeds=5,
    finetuning={"expression": ("--unfreeze", "400", "--optimizer", "lamb")},
    cornbert_steps=100_000,
)
SCALES = {scale.name: scale for scale in (SMALL, PAPER)}


class MissingDataError(Exception):
    """Data that a row needs are not there; says which, and what makes them."""


# What makes the data of a name, from what; `{data}` is the folder of all data.
_PREPARED = {
    "demo": ("simulate", ()),
    "peaks": (
        "pseudobulk --matrix {data}/demo/atlas/matrix.mtx --regions {data}/demo/atlas/regions.bed "
        "--barcodes {data}/demo/atlas/barcodes.tsv --cell-types {data}/demo/atlas/cell_types.tsv",
        ("demo",),
    ),
    "shards": ("shards --genome {data}/demo/simulated_genome.fa --peaks {peaks}", ("peaks",)),
    "promoter": ("promoter", ("demo",)),
    "tfbs": ("tfbs", ("demo",)),
    "hscr": ("hscr", ("demo",)),
    "hscr_long": ("hscr --long 500", ("demo",)),
    "splice": ("splice", ("demo",)),
    "expression": ("expression", ("demo",)),
    "promoters": ("promoters --promoters {data}/demo/expression/promoters.fa --vocabulary {vocabulary}", ("demo",)),
}
_MAKES = {name: f"python data_prep/main.py {command.split(' ')[0]}" for name, (command, _) in _PREPARED.items()}


@dataclass
class Runs:
    """Makes the jobs of a scale.

    data: folder of all data, by name; out: folder of all runs; check: data that are neither there nor simulated are
    missing, else they are taken as if they were there; ds_configs: what the pre-trainings read, to be written before
    they run.
    """

    scale: Scale
    data: Path
    out: Path
    check: bool = True
    mfu: float = CALCULATED_MFU
    ds_configs: dict[Path, dict] = field(default_factory=dict)

    @property
    def model(self) -> ModelConfig:
        """Of all pre-trainings but those that vary it."""
        return model_config(self.scale.preset, self.scale.pretraining)

    def prepared(self, name: str) -> tuple[Job, ...]:
        """What makes the data of this name: nothing where they are there. Raises `MissingDataError` where it could
        not be simulated."""
        folder = self.data / name
        # What was simulated for these tables stays a need of theirs, so that they are not taken for others.
        if self.has(name) and not (ROOT / self.jobs / f"data-{name}.json").is_file():
            return ()
        if not (self.scale.simulated and self.data == SIMULATED):
            raise MissingDataError(f"{folder} is missing; make it with: {_MAKES[name]}")
        command, needs = _PREPARED[name]
        jobs = tuple(job for need in needs for job in self.prepared(need))
        words = [PYTHON, "data_prep/main.py"]
        for word in command.split():
            if word == "{peaks}":
                words += self._peaks()
            else:
                words.append(word.format(data=self.data, vocabulary=self.scale.vocabulary))
        return (Job(f"data-{name}", (*words, "--out", str(folder)), folder / MANIFEST, jobs),)

    @property
    def jobs(self) -> Path:
        """Folder of what the runs print, and of their records."""
        return self.out / "jobs"

    def has(self, name: str) -> bool:
        """Whether the data of this name are there, or taken as if they were."""
        folder = ROOT / self.data / name
        files = (MANIFEST, "config.json", "train.*", "*/train.*")
        return not self.check or any(path.is_file() for file in files for path in folder.glob(file))

    def _peaks(self) -> list[str]:
        """A BED for each cell type of the simulated atlas, whether or not it is written yet."""
        return [str(self.data / "peaks" / f"{cell_type}.bed") for cell_type in sorted(CELL_TYPE_MOTIFS)]

    def pretrained(
        self,
        name: str,
        *arguments: str,
        steps: int | None = None,
        batch: int | None = None,
        model: dict | None = None,
    ) -> Job:
        """Pre-training with further arguments, and conversion. model: what differs in the model's configuration."""
        scale, batch, steps = self.scale, batch or self.scale.batch, steps or self.scale.steps
        arguments = (*scale.pretraining, *_of_model(model or {}), *arguments)
        config = replace(model_config(scale.preset, arguments), **(model or {}))
        hours = self._hours(steps * batch * model_flops(config))
        return self._converted(name, scale.preset, scale.ds_config, batch, steps, "shards", arguments, hours)

    def cornbert(self) -> Job:
        """CornBERT's pre-training, and conversion."""
        config = model_config("cornbert", self.scale.cornbert)
        ds_config = "ds_configs/cornbert_lamb.json"
        batch = _read(ds_config)["train_batch_size"] if self.scale is PAPER else self.scale.batch
        flops = model_flops(config, vocabulary=self.scale.vocabulary)
        hours = self._hours(self.scale.cornbert_steps * batch * flops)
        return self._converted(
            "cornbert", "cornbert", ds_config, batch, self.scale.cornbert_steps, "promoters", self.scale.cornbert, hours
        )

    def _hours(self, flops: float) -> float:
        """GPU hours of so many operations; 0 of small runs, which need no GPU."""
        return 0.0 if self.scale.simulated else flops / (H200 * self.mfu) / 3600

    def _converted(
        self,
        name: str,
        preset: str,
        ds_config: str,
        batch: int,
        steps: int,
        shards: str,
        arguments: Sequence[str],
        hours: float,
    ) -> Job:
        out, model = self.out / "pretrain" / name, self.out / "models" / name
        command = (
            *(*LAUNCHER, "pretrain/main.py", "--config", preset),
            *("--ds_config", str(self._ds_config(ds_config, batch, steps))),
            *("--shards", str(self.data / shards), "--out", str(out), "--steps", str(steps)),
            *arguments,
        )
        made = out / "checkpoints" / f"step-{steps:06d}" / "state.json"
        trained = Job(f"pretrain-{name}", command, made, self.prepared(shards), hours)
        convert = (PYTHON, "pretrain/convert.py", str(out), str(model), "--overwrite")
        return Job(f"convert-{name}", convert, model / DESCRIPTION, (trained,))

    def _ds_config(self, base: str, batch: int, steps: int) -> Path:
        """The DeepSpeed configuration of a batch and number of steps, from one of ds_configs/."""
        content = _read(base)
        params = content["scheduler"]["params"]
        share = params["warmup_num_steps"] / params["total_num_steps"]
        params |= {"warmup_num_steps": max(round(share * steps), 2), "total_num_steps": steps}
        path = self.out / "ds_configs" / f"{Path(base).stem}-batch{batch}-steps{steps}.json"
        self.ds_configs[path] = content | {"train_batch_size": batch}
        return path

    def finetuned(
        self, task: str, model: Job | Path, name: str, models: Sequence[str], *arguments: str, data: str | None = None
    ) -> Job:
        """Fine-tuning of some models of a task. model: what converts the checkpoint, or its folder; name: of its own
        folder; data: of the task unless given."""
        folder, out = self.data / (data or task), self.out / "finetune" / name
        checkpoint, needs = (model.makes.parent, (model,)) if isinstance(model, Job) else (model, ())
        command = (
            *(PYTHON, "finetune/run.py", "--task", task, "--data", str(folder), "--out", str(out)),
            *("--checkpoint", str(checkpoint), "--models", *models, "--seeds", str(self.scale.seeds)),
            *(*self.scale.finetuning.get(task, ()), *arguments, "--overwrite"),
        )
        return Job(f"finetune-{name}", command, out / RESULTS, (*needs, *self.prepared(data or task)))

    def program(self, name: str, script: str, makes: str, needs: Sequence[Job], *arguments: str) -> Job:
        """Another program of this package, which writes the file `makes` into a folder of that name."""
        out = self.out / name
        command = (PYTHON, script, *arguments, "--out", str(out), "--overwrite")
        return Job(name, command, out / makes, tuple(needs))


def model_config(preset: str, arguments: Sequence[str] = ()) -> ModelConfig:
    """The model of a preset and of those arguments of the command line that are the model's."""
    names = {name: value for name, value in read_preset(preset).items() if name in ModelConfig.__dataclass_fields__}
    config = ModelConfig(**names)
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        if (name := name.removeprefix("--")) in ModelConfig.__dataclass_fields__:
            config = replace(config, **{name: type(getattr(config, name))(value)})
    return config


def _of_model(model: dict) -> list[str]:
    return [word for name, value in model.items() for word in (f"--{name}", str(value))]


def _read(ds_config: str) -> dict:
    return json.loads((ROOT / ds_config).read_text())
