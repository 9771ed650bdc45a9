"""The tables and figures of the two papers: the runs of each, and the rows that these give (GeneBERT: Mo et al. 2021,
arXiv 2110.05231; CornBERT: Levy, Xu et al. 2020)."""

import json
from collections.abc import Callable, Iterable
from functools import partial

from finetune.embed import SILHOUETTES
from finetune.paper_values import PRINTED, REGION_ENCODERS
from finetune.table_files import Row, Score
from finetune.table_jobs import Job
from finetune.table_plan import CLASSIFIED, EXPRESSED, SPLICED, Parts, Plan, by_cell_type, by_tissue, models_of
from finetune.table_runs import MissingDataError, Runs

LAMBDAS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0)
LAMBDA = 0.5  # of all other tables
WITHOUT_MATCHING = ("--srm_weight", "0")
MASKED_ALONE = ("--ngsp_weight", "0", *WITHOUT_MATCHING)


def base(runs: Runs, steps: int | None = None) -> Job:
    """The pre-training with all three losses that most tables start from."""
    steps = steps or runs.scale.steps
    return runs.pretrained("all" if steps == runs.scale.steps else f"all-{steps}-steps", steps=steps)


def masked_alone(runs: Runs) -> Job:
    """The pre-training of DNABERT's kind, by masked k-mers alone."""
    return runs.pretrained("mgm", *MASKED_ALONE)


def floors(runs: Runs, task: str, *models: str, data: str | None = None) -> Job:
    """A task's models that owe nothing to pre-training."""
    return runs.finetuned(task, base(runs), f"{data or task}-floors", models, data=data)


def promoter_parts(
    runs: Runs, pretrainings: Iterable[tuple[str, Callable[[], Job], dict[str, str]]], probing: bool = True
) -> Parts:
    """A row of the promoters for each pre-training, by (label, job, what is printed). probing: by the scale's arguments
    for where pre-trainings are compared."""
    parts = Parts()
    arguments, kind = (runs.scale.probing, "probe") if probing and runs.scale.probing else ((), "promoter")
    for label, job, printed in pretrainings:

        def fine_tuned(job: Callable[[], Job] = job) -> Job:
            model = job()
            name = f"{kind}-{model.name.removeprefix('convert-')}"
            return runs.finetuned("promoter", model, name, ["pretrained"], *arguments)

        parts.add(label, fine_tuned, models_of({"pretrained": label}, CLASSIFIED, {"pretrained": printed}))
    return parts


def probed(runs: Runs) -> tuple[str, ...]:
    """Says how promoters are read where pre-trainings are compared."""
    return (f"Fine-tuning of promoters here: {' '.join(runs.scale.probing)}",) if runs.scale.probing else ()


def table1(runs: Runs) -> Plan:
    parts = promoter_parts(
        runs,
        [
            ("GeneBERT", lambda: base(runs), PRINTED["promoter"]),
            ("masked k-mers alone, as DNABERT", lambda: masked_alone(runs), {}),
        ],
        probing=False,
    )
    if runs.has("dnabert") or not runs.scale.simulated:
        parts.add("DNABERT", partial(of_dnabert, runs), models_of({"pretrained": "DNABERT"}, CLASSIFIED))
    labels = {"scratch": "from scratch", "linear": "logistic regression on k-mers with their positions"}
    parts.add("floors", lambda: floors(runs, "promoter", *labels), models_of(labels, CLASSIFIED))
    return Plan("Table 1: core promoters", tuple(CLASSIFIED), tuple(parts.found))


def of_dnabert(runs: Runs) -> Job:
    """The public weights, in a folder as transformers keeps it."""
    if not runs.has("dnabert"):
        raise MissingDataError(f"{runs.data / 'dnabert'} is missing; put the folder of DNABERT's weights there")
    return runs.finetuned("promoter", runs.data / "dnabert", "promoter-dnabert", ["pretrained"])


def _binding_parts(runs: Runs, rows: Callable[..., Callable[[dict], list[Row]]]) -> Parts:
    parts = Parts()
    for label, job, models in (
        ("GeneBERT", lambda: runs.finetuned("tfbs", base(runs), "tfbs-all", ["pretrained"]), ("pretrained",)),
        (
            "masked k-mers alone, as DNABERT",
            lambda: runs.finetuned("tfbs", masked_alone(runs), "tfbs-mgm", ["pretrained"]),
            ("pretrained",),
        ),
        ("floors", lambda: floors(runs, "tfbs", "scratch", "linear", "pwm"), ("scratch", "linear", "pwm")),
    ):
        names = {"pretrained": label, "scratch": "from scratch", "linear": "logistic regression", "pwm": "best motif"}
        parts.add(label, job, rows({model: names[model] for model in models}))
    return parts


def table2(runs: Runs) -> Plan:
    def rows(labels: dict[str, str]) -> Callable[[dict], list[Row]]:
        def by_factor(results: dict) -> list[Row]:
            found = models_of(labels, CLASSIFIED)(results)
            return [
                Row(row.label, row.scores, PRINTED["CTCF"], row.note)
                if "CTCF" in row.label and labels.get("pretrained") == "GeneBERT"
                else row
                for row in found
            ]

        return by_factor

    caption = ("One binary task for each transcription factor and cell line; negatives keep each peak's dinucleotides",)
    title, parts = "Table 2: binding sites by factor and cell line", tuple(_binding_parts(runs, rows).found)
    return Plan(title, tuple(CLASSIFIED), parts, caption=caption, grouped=True)


def table6(runs: Runs) -> Plan:
    def rows(labels: dict[str, str]) -> Callable[[dict], list[Row]]:
        return lambda results: by_cell_type(results, labels)

    parts = tuple(_binding_parts(runs, rows).found)
    return Plan("Table 6: binding sites by cell and tissue type", tuple(CLASSIFIED), parts, grouped=True)


def table3(runs: Runs) -> Plan:
    parts = Parts()
    for data, name in (("hscr", "HSCR-RET"), ("hscr_long", "HSCR-RET-Long")):
        printed = {"pretrained": PRINTED.get(name, {})}

        def fine_tuned(data: str = data) -> Job:
            return runs.finetuned("hscr", base(runs), f"{data}-all", ["pretrained"], data=data)

        def others(data: str = data) -> Job:
            return floors(runs, "hscr", "scratch", "polygenic", data=data)

        labels = {"scratch": f"{name}: from scratch", "polygenic": f"{name}: polygenic regression"}
        label = f"{name}: GeneBERT"
        parts.add(label, fine_tuned, models_of({"pretrained": label}, CLASSIFIED, printed))
        parts.add(f"{name}: floors", others, models_of(labels, CLASSIFIED))
    return Plan("Table 3: disease risk from the RET locus", tuple(CLASSIFIED), tuple(parts.found))


def table4(runs: Runs) -> Plan:
    parts = Parts()
    for context in runs.scale.contexts:

        def fine_tuned(context: int = context) -> Job:
            models = ["pretrained", "spliceai"]
            return runs.finetuned("splice", base(runs), f"splice-{context}", models, "--context", str(context))

        labels = {"pretrained": f"{context} nt: GeneBERT", "spliceai": f"{context} nt: SpliceAI's dilated CNN"}
        printed = {"pretrained": PRINTED["splice"].get(context, {})}
        parts.add(f"{context} nt", fine_tuned, models_of(labels, SPLICED, printed))
    return Plan("Table 4: splice sites", tuple(SPLICED), tuple(parts.found))


def table5(runs: Runs) -> Plan:
    parts = Parts()

    def untrained() -> Job:
        if not runs.scale.probing:
            return floors(runs, "promoter", "scratch", "linear")
        return runs.finetuned("promoter", base(runs), "probe-scratch", ["scratch"], *runs.scale.probing)

    parts.add("none", untrained, models_of({"scratch": "none"}, CLASSIFIED))
    trained = promoter_parts(
        runs,
        [
            ("mgm", lambda: masked_alone(runs), {}),
            ("mgm + ngsp", lambda: runs.pretrained("mgm-ngsp", *WITHOUT_MATCHING), {}),
            ("mgm + ngsp + srm", lambda: base(runs), PRINTED["promoter"]),
        ],
    )
    found = (*parts.found, *trained.found)
    return Plan("Table 5: losses of pre-training, on promoters", tuple(CLASSIFIED), found, caption=probed(runs))


def table7(runs: Runs) -> Plan:
    steps = runs.scale.steps_of_many

    def pretrained(label: str) -> Job:
        name, small = REGION_ENCODERS[label]
        arguments = small if runs.scale.simulated else {}
        model = {"region_encoder": name, "region_encoder_arguments": json.dumps(arguments)}
        if all(getattr(runs.model, part) == value for part, value in model.items()):
            return base(runs, steps)
        return runs.pretrained(f"region-{label.lower()}", steps=steps, model=model)

    parts = promoter_parts(
        runs,
        [(label, partial(pretrained, label), PRINTED.get(f"promoter, {label}", {})) for label in REGION_ENCODERS],
    )
    caption = (f"Pre-training of each: {steps:,} steps", *probed(runs))
    return Plan("Table 7: region encoders, on promoters", tuple(CLASSIFIED), tuple(parts.found), caption=caption)


def table8(runs: Runs) -> Plan:
    steps = runs.scale.steps_of_many

    def of_batch(batch: int) -> Job:
        if batch == runs.scale.batch:
            return base(runs, steps)
        return runs.pretrained(f"batch-{batch}", steps=steps, batch=batch)

    def of_lambda(weight: float) -> Job:
        if weight == LAMBDA:
            return base(runs, steps)
        return runs.pretrained(f"lambda-{weight:g}", "--srm_weight", f"{weight:g}", steps=steps)

    rows = [(f"batch {batch}", partial(of_batch, batch), {}) for batch in runs.scale.batches]
    rows += [(f"lambda {weight:g}", partial(of_lambda, weight), {}) for weight in LAMBDAS]
    caption = (f"Pre-training of each: {steps:,} steps", "lambda: weight of sequence-region matching", *probed(runs))
    found = tuple(promoter_parts(runs, rows).found)
    return Plan("Table 8: batch size and lambda, on promoters", tuple(CLASSIFIED), found, caption=caption)


def figure2(runs: Runs) -> Plan:
    parts = Parts()

    def embedded() -> Job:
        both, alone = base(runs), masked_alone(runs)
        return runs.program(
            "figure2-embeddings",
            "finetune/embed.py",
            SILHOUETTES,
            (both, alone),
            *("--checkpoint", str(both.makes.parent), "--unimodal", str(alone.makes.parent)),
            *("--data", str(runs.data / "shards")),
        )

    def rows(silhouettes: dict) -> list[Row]:
        modalities = {"unimodal": "uni-modal: mgm, sequence", "multimodal": "multi-modal: all losses, both modalities"}
        return [
            Row(label, {"silhouette score": Score(silhouettes[modality]["all"])})
            for modality, label in modalities.items()
        ]

    parts.add("embeddings", embedded, rows)
    return Plan(
        "Figure 2: representations by cell type",
        ("silhouette score",),
        tuple(parts.found),
        caption=("The map is figure2-embeddings/tsne.png",),
    )


def cornbert(runs: Runs) -> Plan:
    parts = Parts()
    floors_ = {
        "scratch": "from scratch",
        "mean": "constant mean",
        "motifs": "elements of plant promoters + LightGBM",
        "kmers": "bag of 5-mers + linear regression",
    }
    for label, models in (("CornBERT", {"pretrained": "CornBERT"}), ("floors", floors_)):

        def fine_tuned(name: str = f"expression-{label.lower()}", models: dict[str, str] = models) -> Job:
            return runs.finetuned("expression", runs.cornbert(), name, list(models))

        parts.add(label, fine_tuned, partial(by_tissue, labels=models))
    more = ()
    if isinstance(job := parts.found[0].job, Job):
        more = (
            runs.program(
                "cornbert-location",
                "finetune/explain.py",
                "location.tsv",
                (job,),
                *("--task", "expression", "--checkpoint", str(job.makes.parent / "pretrained")),
                *("--data", str(runs.data / "expression"), "--methods", "location"),
                *("--rows", str(runs.scale.explained)),
            ),
        )
    return Plan(
        "CornBERT: gene expression in maize",
        tuple(EXPRESSED),
        tuple(parts.found),
        more,
        ("The importance of location is cornbert-location/location.png",),
        grouped=True,
    )


TABLES: dict[str, Callable[[Runs], Plan]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "table8": table8,
    "figure2": figure2,
    "cornbert": cornbert,
}
