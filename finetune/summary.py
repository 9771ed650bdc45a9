"""Print what the default folders hold: what was trained and measured, and where the figures are.

python finetune/summary.py
"""

import json
from pathlib import Path

from data_prep.errors import InputError, ends_on_input_error
from finetune.results import format_scores

PRETRAINED = Path("runs/pretrain")
FINE_TUNED = Path("runs/finetune-promoter")
INSPECTED = Path("data/shards.inspect")


@ends_on_input_error
def main() -> None:
    for path in (PRETRAINED / "config.json", PRETRAINED / "metrics.jsonl", FINE_TUNED / "results.json"):
        if not path.is_file():
            raise InputError(f"{path}: not there; make demo makes it")
    record = json.loads((PRETRAINED / "config.json").read_text())
    rows = [json.loads(line) for line in (PRETRAINED / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((FINE_TUNED / "results.json").read_text())
    print("\n".join(["", *pretraining(record, rows), "", *fine_tuning(results), "", *figures()]))


def pretraining(record: dict, rows: list[dict]) -> list[str]:
    """The held-out metrics of the first and the last evaluation, beside chance."""
    evaluations = [row for row in rows if "val/loss/total" in row]
    if not evaluations:
        return [f"Pre-training: {record['steps']} steps; no chromosome was held out"]
    first, last = evaluations[0], evaluations[-1]
    batch, kmers = record["layout"]["global_batch"], 4 ** record["model"]["k"]
    chance = {"val/mgm/accuracy": 1 / kmers, "val/ngsp/accuracy": 0.5, "val/srm/recall_at_1": last["val/srm/chance"]}
    lines = [
        f"Pre-training: {record['steps']} steps of {batch} samples on {record['layout']['world_size']} ranks, genome "
        f"{record['genome']['name']}; held-out chromosomes",
        f"  {'':<28}{'step ' + str(first['step']):>10}{'step ' + str(last['step']):>10}{'chance':>10}",
    ]
    for name in ("val/loss/total", "val/loss/mgm", "val/loss/ngsp", "val/loss/srm", *chance):
        by_chance = f"{chance[name]:>10.4f}" if name in chance else ""
        lines.append(f"  {name.removeprefix('val/'):<28}{first[name]:>10.4f}{last[name]:>10.4f}{by_chance}")
    return lines


def fine_tuning(results: dict) -> list[str]:
    simulated = " (simulated data)" if results["simulated"] else ""
    return [f"Fine-tuning: {results['task']}{simulated}", *(f"  {line}" for line in format_scores(results))]


def figures() -> list[str]:
    drawn = [INSPECTED / "overview.png", INSPECTED / "motifs.png", PRETRAINED / "curves.png", FINE_TUNED / "roc_pr.png"]
    return [f"Figures: {', '.join(str(path) for path in drawn if path.is_file())}"]


if __name__ == "__main__":
    main()
