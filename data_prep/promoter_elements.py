"""Elements of plant promoters, as consensus strings of IUPAC letters, and where they stand in a sequence.

Their names are those of Yamamoto et al. (2007, NAR 35:6219; 2007, BMC Genomics 8:67; 2009, Plant J. 60:350), who found
each as a group of octamers that pile up at one distance from the start of transcription: TATA box, Y patch, initiator
(Inr), CA and GA elements. A group is told here by one string that its octamers share, which is simpler than the lists.
"""

import re
from functools import cache

from Bio.Data.IUPACData import ambiguous_dna_values
from Bio.Seq import reverse_complement

ELEMENTS = {
    "TATA": "TATAWAW",
    "Y_patch": "YYYYYYYY",
    "Inr": "YTCANTYY",
    "CA": "CAACAA",
    "GA": "GAGAGA",
}
STRANDS = ("+", "-")


def sites(sequence: str, element: str, strand: str) -> list[int]:
    """Where the element begins on the sequence, 0-based and ascending, overlapping ones too; on strand -, where its
    reverse complement does. sequence: upper-case letters; other than ACGT match nothing."""
    return [found.start() for found in _pattern(element, strand).finditer(sequence)]


@cache
def _pattern(element: str, strand: str) -> re.Pattern:
    consensus = ELEMENTS[element] if strand == "+" else reverse_complement(ELEMENTS[element])
    return re.compile(f"(?={''.join(f'[{ambiguous_dna_values[letter]}]' for letter in consensus)})")
