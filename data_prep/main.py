"""Prepare data, offline and on a CPU.

    python data_prep/main.py simulate --out data/demo
    python data_prep/main.py pseudobulk --matrix M.mtx --regions regions.bed --barcodes barcodes.tsv \\
        --cell-types cell_types.tsv
    python data_prep/main.py shards --genome genome.fa --peaks data/peaks/*.bed
    python data_prep/main.py inspect data/shards
    python data_prep/main.py promoters --promoters maize.fa sorghum.fa.gz
"""

import argparse
from dataclasses import fields

from transformers import HfArgumentParser

from data_prep import inspect_shards, promoters, pseudobulk, shards, simulate
from data_prep.errors import ends_on_input_error

COMMANDS = {
    "simulate": (simulate.SimulateConfig, simulate.run, "write a simulated atlas in the formats of the real data"),
    "pseudobulk": (pseudobulk.PseudobulkConfig, pseudobulk.run, "peak count matrix to one BED a cell type"),
    "shards": (shards.ShardsConfig, shards.run, "genome and peaks to WebDataset shards of 10-region samples"),
    "promoters": (promoters.PromotersConfig, promoters.run, "promoters of each species to shards, and their tokenizer"),
    "inspect": (inspect_shards.InspectConfig, inspect_shards.run, "print and draw what shards hold, or verify them"),
}
# What a command takes besides its configuration's fields; handed to its `run` by name.
MORE_ARGUMENTS = {"inspect": inspect_shards.add_arguments}


@ends_on_input_error
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="data_prep/main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=HfArgumentParser)
    for name, (config, _, summary) in COMMANDS.items():
        command = commands.add_parser(name, dataclass_types=config, help=summary, description=summary)
        if name in MORE_ARGUMENTS:
            MORE_ARGUMENTS[name](command)
    given = vars(parser.parse_args(arguments))
    config, run, _ = COMMANDS[given.pop("command")]
    options = {option.name: given.pop(option.name) for option in fields(config)}
    run(config(**options), **given)


if __name__ == "__main__":
    main()
