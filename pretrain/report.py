"""One HTML page of a run, from its folder alone: how far it is, curves, held-out results by cell type, samples, config.

    python pretrain/report.py runs/pretrain

Reads metrics.jsonl, config.json, samples.jsonl and figures/, of a run that is done, or killed, or still going on. The
page, report.html in the run folder, holds all it shows: no other file, no network.
"""

import argparse
import base64
import io
import json
import sys
import time
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from data_prep.errors import InputError, ends_on_input_error
from pretrain.curves import LEARNING, THROUGHPUT, chance_levels, drawn
from pretrain.run_record import METRICS, read_figures, read_metrics, read_samples, safe_names

RESULTS = (
    ("loss/total", "total loss"),
    ("loss/mgm", "masked genome modelling: loss"),
    ("mgm/accuracy", "masked k-mers predicted"),
    ("mgm/perplexity", "perplexity"),
    ("loss/ngsp", "next genome segment: loss"),
    ("ngsp/accuracy", "next segments told from others"),
    ("loss/srm", "sequence-region matching: loss"),
    ("srm/recall_at_1", "regions matched, first rank"),
    ("srm/recall_at_5", "regions matched, among the first 5"),
    ("srm/temperature", "temperature"),
)
FIGURES = {
    "similarity": "Each sequence against each region's binding of the first held-out samples, sorted by cell type: "
    "cosine of their embeddings. Pairs stand on the diagonal.",
    "tsne": "[CLS] of held-out samples, t-SNE, coloured by cell type.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.5em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin: 2em 0 0.5em; }
table { border-collapse: collapse; } td, th { padding: 0.2em 1.2em 0.2em 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #ccc; } td.number, th.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
.side { display: flex; flex-wrap: wrap; gap: 2em; } .side figure { flex: 1 1 420px; margin: 0; }
figcaption, .note { color: #666; font-size: 0.9em; } .bar { background: #eee; height: 8px; border-radius: 4px; }
.bar div { background: #4477aa; height: 8px; border-radius: 4px; } code, pre { font: 13px/1.6 ui-monospace, monospace; }
.bases { overflow-wrap: anywhere; } mark { background: #ee6677; color: white; } pre { white-space: pre-wrap; }
.scroll { overflow-x: auto; }
"""


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="pretrain/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="run folder of pretrain/main.py (its --out)")
    parser.add_argument("--out", type=Path, help="the page's file (default: RUN_DIR/report.html)")
    given = parser.parse_args(arguments)
    out = given.out or given.run_dir / "report.html"
    content = page(given.run_dir)
    try:
        out.write_text(content)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}; choose another --out") from error
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def page(run_dir: Path) -> str:
    """The page. Raises `InputError` where the folder holds no run, or a file of it cannot be read."""
    try:
        rows, samples = read_metrics(run_dir), read_samples(run_dir)
        config = json.loads((run_dir / "config.json").read_text()) if rows else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{run_dir}: the record of the run cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{run_dir / METRICS}: not there or empty; give the --out folder of a run that has begun")
    held_out = [row for row in rows if "val/loss/total" in row]
    figures = read_figures(run_dir)
    model = config["model"]
    of_regions = model.get("sequence_encoder", "bert") == "bert"
    k, kind = (model["k"], "cell type") if of_regions else (None, "species")
    chance = chance_levels(rows, config["layout"]["global_batch"], k)
    sections = [
        header(run_dir, config, rows, held_out),
        section("Curves", image(drawn(rows, LEARNING, chance), "curves of losses, accuracies and learning rate")),
        section("Results", results(rows, held_out, chance)),
        section(f"By {kind}", cell_types(held_out[-1], config.get("cell_types", {}), kind) if held_out else ""),
        section("Embeddings", embeddings(figures)),
        section("Throughput", image(drawn(rows, THROUGHPUT, {}), "curves of throughput and memory") + rates(rows)),
        section("Held-out samples", samples_of([one for one in samples if one["step"] == samples[-1]["step"]])),
        section("Configuration", configuration(config)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run_dir.resolve().name)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def header(run_dir: Path, config: dict, rows: list[dict], held_out: list[dict]) -> str:
    """What run it is, and how far."""
    done, steps, layout = rows[-1]["step"], config["steps"], config["layout"]
    written = (run_dir / METRICS).stat().st_mtime
    rate = next((row["perf/samples_per_s"] for row in reversed(rows) if "perf/samples_per_s" in row), None)
    left = (steps - done) * layout["global_batch"] / rate if rate and done < steps else 0
    state = "complete" if done >= steps else f"{duration(left)} left at its last rate" if left else "under way"
    data = [config["genome"]["name"]]
    encoders = config["model"].get("sequence_encoder", "bert")
    if config["motifs"]:  # of promoters there is no binding
        data += [f"{len(config.get('cell_types', {}))} cell types", f"{len(config['motifs'])} motifs"]
        encoders += f" and {config['model']['region_encoder']}"
    facts = {
        "steps": f"{done:,} of {steps:,}: {state}",
        "last row written": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(written)),
        "model": f"{config['run']['config']}: {encoders}, "
        f"{config['model']['layers']} layers of width {config['model']['hidden_size']}, "
        f"{config['model']['max_tokens']} tokens",
        "batch": f"{layout['global_batch']:,} samples on {layout['world_size']} ranks, "
        f"{layout['accumulation']} x {layout['micro_batch']} each",
        "data": f"{', '.join(data)}; shards {config['shards'][:12]}",
        "seed": config["run"]["seed"],
        "commit": config.get("commit") or "not known",
    }
    if held_out:
        best = min(held_out, key=lambda row: row["val/loss/total"])
        facts["best held-out loss"] = f"{best['val/loss/total']:.4f} at step {best['step']:,}"
    share = min(100.0, 100 * done / steps)
    return (
        f"<h1>{escape(str(run_dir.resolve().name))}</h1>\n"
        f'<div class="bar"><div style="width: {share:.1f}%"></div></div>\n' + table([], list(facts.items()))
    )


def results(rows: list[dict], held_out: list[dict], chance: dict[str, float]) -> str:
    """The latest numbers, training beside held-out."""
    training = next((row for row in reversed(rows) if "loss/total" in row), {})
    last = held_out[-1] if held_out else {}
    lines = [
        (title, number(training.get(name)), number(last.get(f"val/{name}")), number(chance.get(name)))
        for name, title in RESULTS
        if name in training or f"val/{name}" in last
    ]
    heads = [
        "",
        f"training, step {training['step']:,}" if training else "training",
        f"held-out, step {last['step']:,}" if last else "held-out",
        "held-out chance",
    ]
    return table(heads, lines, numbers_from=1)


def cell_types(row: dict, samples: dict[str, dict], kind: str) -> str:
    """The latest held-out numbers of each cell type; samples: of each, by split."""
    by_name: dict[str, dict[str, float]] = {}
    titles = dict(RESULTS)
    for name, value in row.items():
        metric, _, cell_type = name.removeprefix("val/").rpartition("/")
        if metric in titles:
            by_name.setdefault(cell_type, {})[metric] = value
    metrics = [metric for metric, _ in RESULTS if any(metric in found for found in by_name.values())]
    if not metrics:
        return ""
    original = dict(zip(safe_names(list(samples)), samples, strict=True))
    lines = []
    for safe, found in by_name.items():
        name = original.get(safe, safe)
        held_out = samples.get(name, {}).get("val")
        lines.append(
            (name, "" if held_out is None else f"{held_out:,}", *(number(found.get(metric)) for metric in metrics))
        )
    heads = [kind, "held-out samples", *(titles[metric] for metric in metrics)]
    return f'<div class="scroll">{table(heads, lines, numbers_from=1)}</div>'


def embeddings(figures: dict[int, dict[str, Path]]) -> str:
    """The latest figure of each kind."""
    parts = []
    for name, caption in FIGURES.items():
        step = max((step for step, by_name in figures.items() if name in by_name), default=None)
        if step is not None:
            data = base64.b64encode(figures[step][name].read_bytes()).decode()
            parts.append(
                f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
                f"<figcaption>Step {step:,}. {escape(caption)}</figcaption></figure>"
            )
    return f'<div class="side">{"".join(parts)}</div>' if parts else ""


def rates(rows: list[dict]) -> str:
    """The latest rates, as numbers."""
    last = next((row for row in reversed(rows) if "perf/samples_per_s" in row), {})
    return table([], [(title, number(last[name])) for name, title in THROUGHPUT if name in last], numbers_from=1)


def samples_of(samples: list[dict]) -> str:
    """What the model made of a few held-out samples at the last evaluation."""
    if not samples:
        return ""
    parts = [
        '<p class="note">A region of each, as the model read it: hidden bases, which no unmasked k-mer shows, are '
        "marked. Beside each masked k-mer stand the model's guess and the probability that it gave to the true one.</p>"
    ]
    for sample in samples:
        place = f"{sample['chromosome']}:{sample['start']:,}-{sample['end']:,}"
        bases = "".join(
            f"<mark>{escape(base)}</mark>" if hidden else escape(base)
            for base, hidden in zip(sample["bases"], sample["hidden"], strict=True)
        )
        kmers = [(k["at"], k["true"], k["predicted"], f"{k['probability']:.3f}") for k in sample["kmers"]]
        follows = ""
        if "follows" in sample:
            follows = (
                f"<p>Its second half {'follows' if sample['follows'] else 'is from elsewhere'}; the model's "
                f"probability that it follows: {sample['follows_probability']:.3f}</p>"
            )
        parts.append(
            f"<p><b>{escape(str(sample['cell_type']))}</b>, {escape(place)}, step {sample['step']:,}</p>"
            f'<p class="bases"><code>{bases}</code></p>{follows}<details><summary>{len(kmers)} masked k-mers</summary>'
            + table(["at", "true", "guess", "probability of the true"], kmers)
            + "</details>"
        )
    return "\n".join(parts)


def configuration(config: dict) -> str:
    """config.json, a block for each part of it."""
    parts = [
        f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}"
        "</pre></details>"
        for name, value in config.items()
        if isinstance(value, dict | list) and value
    ]
    plain = [(name, value) for name, value in config.items() if isinstance(value, str | int | float)]
    return table([], plain) + "\n".join(parts)


def section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def table(heads: list[str], lines: list[tuple], numbers_from: int = 99) -> str:
    """numbers_from: the first column that is set as numbers, to the right."""

    def cell(tag: str, column: int, value: object) -> str:
        kind = ' class="number"' if column >= numbers_from else ""
        return f"<{tag}{kind}>{escape(str(value))}</{tag}>"

    top = "".join(cell("th", column, head) for column, head in enumerate(heads))
    body = "\n".join(
        f"<tr>{''.join(cell('td', column, value) for column, value in enumerate(line))}</tr>" for line in lines
    )
    return f"<table>{f'<tr>{top}</tr>' if heads else ''}\n{body}</table>"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def image(figure: Figure | None, what: str) -> str:
    if figure is None:
        return ""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return f'<img alt="{escape(what)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


if __name__ == "__main__":
    sys.exit(main())
