"""Prepare data, offline and on a CPU.

    python data_prep/main.py simulate --out data/demo
    python data_prep/main.py pseudobulk --matrix M.mtx --regions regions.bed --barcodes barcodes.tsv \\
        --cell-types cell_types.tsv
    python data_prep/main.py shards --genome genome.fa --peaks data/peaks/*.bed
    python data_prep/main.py inspect data/shards
    python data_prep/main.py promoters --promoters maize.fa sorghum.fa.gz
    python data_prep/main.py promoter --tss genes.bed --genome genome.fa
    python data_prep/main.py tfbs --peaks chip/*.narrowPeak --genome genome.fa
    python data_prep/main.py hscr --vcf cohort.vcf.gz --phenotypes samples.tsv --regions locus.bed --genome hg19.fa
    python data_prep/main.py splice --genes canonical_dataset.txt --genome hg19.fa
    python data_prep/main.py expression --genome maize.fa --annotation genes.gff3 --tpm B73_TPM.txt
"""

import argparse
from dataclasses import fields

from transformers import HfArgumentParser

from data_prep import (
    expression_data,
    hscr_data,
    inspect_shards,
    promoter_data,
    promoters,
    pseudobulk,
    shards,
    simulate,
    splice_data,
    tfbs_data,
)
from data_prep.errors import ends_on_input_error

COMMANDS = {
    "simulate": (simulate.SimulateConfig, simulate.run, "write a simulated atlas in the formats of the real data"),
    "pseudobulk": (pseudobulk.PseudobulkConfig, pseudobulk.run, "peak count matrix to one BED a cell type"),
    "shards": (shards.ShardsConfig, shards.run, "genome and peaks to WebDataset shards of 10-region samples"),
    "promoters": (promoters.PromotersConfig, promoters.run, "promoters of each species to shards, and their tokenizer"),
    "inspect": (inspect_shards.InspectConfig, inspect_shards.run, "print and draw what shards hold, or verify them"),
    "promoter": (promoter_data.PromoterConfig, promoter_data.run, "labelled sequences, or start sites, to task tables"),
    "tfbs": (tfbs_data.TfbsConfig, tfbs_data.run, "ChIP-seq peaks and a genome to a task table for each peak file"),
    "hscr": (hscr_data.HscrConfig, hscr_data.run, "VCF, phenotypes and a locus to people's haplotypes"),
    "splice": (splice_data.SpliceConfig, splice_data.run, "genes and a genome to transcripts with splice sites"),
    "expression": (
        expression_data.ExpressionConfig,
        expression_data.run,
        "promoters, or a genome and its genes, and TPM to a task table",
    ),
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
