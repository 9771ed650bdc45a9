"""Splits of a downstream task by chromosome: whole chromosomes are held out, so that no stretch lies on both sides."""

from dataclasses import dataclass

from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.task_table import SPLITS

NONE = "none"
# Of about 6% of the human genome each, and in every other genome with as many chromosomes, the demo's too.
DEV, TEST = "chr4", "chr3"
DEV_HELP = f"Chromosomes of the dev split, or '{NONE}'."
TEST_HELP = f"Chromosomes of the test split, or '{NONE}'."


@dataclass(frozen=True)
class ChromosomeSplit:
    """dev, test: chromosomes by the FASTA's names; all others are for training."""

    dev: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, genome: Genome, dev: list[str], test: list[str]) -> "ChromosomeSplit":
        """From what --dev-chroms and --test-chroms name. Raises `InputError` for a chromosome that the genome lacks,
        one on both sides, and where nothing would be held out."""
        split = cls(_resolved(genome, dev, "--dev-chroms"), _resolved(genome, test, "--test-chroms"))
        both = set(split.dev) & set(split.test)
        if both:
            raise InputError(f"--dev-chroms and --test-chroms both name {min(both)}; give each chromosome once")
        if not split.dev and not split.test:
            raise InputError(f"--dev-chroms and --test-chroms are both '{NONE}'; hold out at least one chromosome")
        return split

    def of_chromosome(self, name: str) -> str:
        """`train`, `dev` or `test`."""
        return "dev" if name in self.dev else "test" if name in self.test else "train"

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are to have rows, in order from train on."""
        return tuple(name for name in SPLITS if name == "train" or getattr(self, name))

    def where(self, split: str) -> str:
        """How the flags lead to a split without a row, in words."""
        if split == "train":
            return "--dev-chroms and --test-chroms leave to train"
        return f"--{split}-chroms {' '.join(getattr(self, split))}: has"

    @property
    def rule(self) -> str:
        """In words, for a manifest."""
        held_out = "; ".join(f"{name}: {', '.join(getattr(self, name))}" for name in self.splits[1:])
        return f"by chromosome; {held_out}; train: all others"


def _resolved(genome: Genome, names: list[str], flag: str) -> tuple[str, ...]:
    if names == [NONE]:
        return ()
    found = []
    for name in names:
        if genome.resolve(name) is None:
            there = [*genome.lengths]
            listed = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
            raise InputError(
                f"{flag}: {genome.path} has no chromosome {name!r}; it has {listed}; name some, or '{NONE}'"
            )
        found.append(genome.resolve(name))
    return tuple(dict.fromkeys(found))
