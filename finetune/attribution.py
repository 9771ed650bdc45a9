"""Which bases a fine-tuned model reads: attention, in-silico mutagenesis, integrated gradients, flipped L-mers.

What is explained of a sequence is one number, its `Explained` value: of a class the logit of its probability (so its
log-odds against all other classes), of a value the value. A model of nucleotides is explained at one of those
that it predicts. Scores of bases are float64 [bp]; of bases that the model does not read they are 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.bases import LETTERS, OTHER, decode, encode, reverse_complement
from data_prep.kmers import MASK
from finetune.encoder import SequenceTokens
from finetune.scoring import Scorer

STEPS, STEPS_AT_ONCE = 32, 8  # of integrated gradients
LONGEST_MER = 6  # bp that are flipped together


@dataclass(frozen=True)
class Explained:
    """The number that is explained of a model's prediction. output: its number; place: of the nucleotide among those
    predicted, of a model of nucleotides. Where the model was trained on both strands, the mean over both."""

    scorer: Scorer
    output: int
    batch_size: int = 256
    place: int = 0

    @torch.no_grad()
    def __call__(self, sequences: list[str]) -> np.ndarray:
        """float64 [n]."""
        parts = [sequences[first : first + self.batch_size] for first in range(0, len(sequences), self.batch_size)]
        found = []
        for examples in map(self.scorer.examples, parts):
            of_strands = [self.of(self.scorer.logits(examples, opposite)) for opposite in self.scorer.strands]
            found.append(torch.stack(of_strands).mean(0).double())
        return torch.cat(found).cpu().numpy()

    def of(self, logits: torch.Tensor) -> torch.Tensor:
        """[n], of logits [n, outputs] or [n, positions, outputs]."""
        kind = self.scorer.model.target.kind
        if kind == "values":
            return logits[:, self.output]
        if kind == "nucleotides":
            logits = logits[:, self.place]
        others = [number for number in range(logits.shape[1]) if number != self.output]
        return logits[:, self.output] - logits[:, others].logsumexp(1)

    @property
    def what(self) -> str:
        """What is explained, in words."""
        name = self.scorer.outputs[self.output]
        return name if self.scorer.model.target.kind == "values" else f"logit of {name}"


def attention(explained: Explained, sequence: str) -> np.ndarray:
    """How much the last layer attends to each base: `token_attention`, spread."""
    return of_bases(token_attention, explained, sequence)


def gradients(explained: Explained, sequence: str) -> np.ndarray:
    """What each base adds to the explained value: `integrated_gradients`, spread."""
    return of_bases(integrated_gradients, explained, sequence)


def token_attention(explained: Explained, sequence: str) -> np.ndarray:
    """The last layer's attention to each token, float64 [tokens], of sum 1: the mean over heads, and over all tokens,
    whose mean the head reads; of a model of nucleotides that of the one token over the nucleotide explained."""
    scorer = explained.scorer
    model, batch = scorer.model, scorer.batch(scorer.examples([sequence]))
    fast = model.sequence.config._attn_implementation
    model.sequence.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            encoded = model.sequence(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True
            )
    finally:
        model.sequence.set_attn_implementation(fast)
    paid = encoded.attentions[-1][0].double().mean(0)
    if model.target.kind == "nucleotides":
        paid = paid[model.kmers_over_nucleotides(len(paid))][[explained.place]]
    return paid.mean(0).cpu().numpy()


def integrated_gradients(explained: Explained, sequence: str) -> np.ndarray:
    """Integrated gradients (Sundararajan et al. 2017) of the explained value on the given strand, float64 [tokens].

    The path leads from the embeddings of a sequence of [MASK] to those of the sequence, special tokens and the binding
    matrix staying as they are; the integral is Gauss and Legendre's over 32 points. The scores add up to the difference
    of the explained value between its ends.
    """
    scorer = explained.scorer
    words = scorer.model.sequence.embeddings.word_embeddings
    batch = scorer.batch(scorer.examples([sequence]))
    with torch.no_grad():
        end, start = words(batch["input_ids"]), words(masked(scorer.encoder.tokens, batch["input_ids"]))
    points, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(end[0], dtype=torch.float64)
    for first in range(0, STEPS, STEPS_AT_ONCE):
        here = slice(first, first + STEPS_AT_ONCE)
        share, weight = (torch.from_numpy(x[here, None, None] / 2).to(end) for x in (points + 1, weights))
        path = (start + share * (end - start)).requires_grad_()
        copies = {name: tensor.expand(len(path), *tensor.shape[1:]) for name, tensor in batch.items()}
        copies["rows"] = torch.arange(len(path), device=end.device)[:, None, None]
        hook = words.register_forward_hook(lambda _, __, ___, path=path: path)
        try:
            value = explained.of(scorer.model(**copies)["logits"].float()).sum()
        finally:
            hook.remove()
        (gradient,) = torch.autograd.grad(value, path)
        total += (weight * gradient).double().sum(0)
    return (total * (end - start)[0]).sum(-1).cpu().numpy()


def masked(tokens: SequenceTokens, ids: torch.Tensor) -> torch.Tensor:
    """The token ids with [MASK] in place of all but the first and the last, which are special. int64 [n, tokens]."""
    found = ids.clone()
    found[:, 1:-1] = MASK if tokens.k else tokens.tokenizer.mask_token_id
    return found


def mutagenesis(explained: Explained, sequence: str) -> np.ndarray:
    """Change of the explained value where each base becomes each other one, float64 [bp, 4], columns A, T, C, G; 0 for
    the base itself, and for letters outside ACGT."""
    codes = encode(sequence)
    places = np.repeat(np.flatnonzero(codes < OTHER), 3)
    letters = (codes[places] + np.arange(len(places)) % 3 + 1) % len(LETTERS)
    others = np.repeat(codes[None], len(places), axis=0)
    others[np.arange(len(places)), places] = letters
    values = explained([decode(codes), *map(decode, others)])
    change = np.zeros((len(codes), len(LETTERS)))
    change[places, letters] = values[1:] - values[0]
    return change


def mean_change(change: np.ndarray) -> np.ndarray:
    """How much each base matters: the mean absolute change over its three substitutions, [bp], of `mutagenesis`."""
    return np.abs(change).sum(1) / 3


def location(explained: Explained, sequence: str, longest: int = LONGEST_MER) -> np.ndarray:
    """Importance of location (Levy et al. 2020): absolute change of the explained value where the L bases from each
    place T on become their complements, float64 [longest, bp], by L - 1 and T; NaN where they pass the end."""
    codes = encode(sequence)
    complement = reverse_complement(codes)[::-1]
    spans = [(size, start) for size in range(1, longest + 1) for start in range(len(codes) - size + 1)]
    at = np.arange(len(codes))
    flipped = [decode(np.where((at >= start) & (at < start + size), complement, codes)) for size, start in spans]
    values = explained([decode(codes), *flipped])
    change = np.full((longest, len(codes)), np.nan)
    for (size, start), value in zip(spans, values[1:], strict=True):
        change[size - 1, start] = abs(value - values[0])
    return change


def of_bases(of_tokens: Callable[[Explained, str], np.ndarray], explained: Explained, sequence: str) -> np.ndarray:
    """Scores of bases from those of tokens, float64 [bp], the mean over the strands that the model reads."""
    scorer, found = explained.scorer, []
    for opposite in scorer.strands:
        read = decode(reverse_complement(encode(sequence))) if opposite else sequence
        spans = token_spans(scorer.encoder.tokens, read, scorer.about["longest"])
        scores = spread(of_tokens(explained, read), spans, len(read))
        found.append(scores[::-1] if opposite else scores)
    return np.mean(found, axis=0)


def token_spans(tokens: SequenceTokens, sequence: str, longest: int) -> np.ndarray:
    """The bases of each token that `SequenceTokens.ids` gives, int64 [tokens, 2], half-open; none of special ones."""
    if tokens.k is None:
        found = tokens.tokenizer(sequence, truncation=True, max_length=longest, return_offsets_mapping=True)
        return np.array(found["offset_mapping"], np.int64)
    starts = np.arange(min(len(sequence) - tokens.k + 1, longest - 2))
    return np.pad(np.stack([starts, starts + tokens.k], axis=1), ((1, 1), (0, 0)))


def spread(scores: np.ndarray, spans: np.ndarray, bp: int) -> np.ndarray:
    """Scores of bases, float64 [bp]: each token's is shared equally among its bases, so that the sum stays. Of a base
    within overlapping k-mers that is their mean.

    scores: float64 [tokens]; spans: int64 [tokens, 2], none of special tokens, whose scores are left out.
    """
    found = np.zeros(bp)
    for score, (start, end) in zip(scores, spans, strict=True):
        found[start:end] += score / max(end - start, 1)
    return found


OF_TOKENS = {"attention": attention, "gradients": gradients}
MUTAGENESIS, LOCATION = "mutagenesis", "location"
BY_BASE = ("attention", MUTAGENESIS, "gradients")
METHODS = (*BY_BASE, LOCATION)
