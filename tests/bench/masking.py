"""Speed of masking, from bases to a masked batch, beside what a data loader's worker does with tokenised rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from kernels.kmer_mask import (
    BECOMES_MASK,
    IGNORED,
    MASK,
    N_SPECIAL,
    STAYS,
    Masking,
    capacity_for,
    mask_kmers,
    span_tokens,
)
from tests.bench.print_csv import Row

K, TOKENS, RATE, REGIONS = 6, 512, 0.15, 10
WORKER_BATCH, GPU_BATCH = 64, 2000
SPAN = span_tokens("dnabert", K)
MASKING = Masking(k=K, tokens=TOKENS, span=SPAN, rate=RATE, capacity=capacity_for(TOKENS, RATE, SPAN), seed=0)
OURS = "ours"
COLLATOR = "collator: "
COPIED = 2**30  # bytes, copied on the GPU to learn its bandwidth

Goal = tuple[str, dict[str, float], Callable[[float], bool]]


def bench(device: torch.device, measure: Callable) -> Iterator[Row]:
    """A row for each way: on a CPU with one thread, as a worker has; ours on the GPU too, where there is one."""
    cpu = torch.device("cpu")
    given = batch_of(WORKER_BATCH, cpu)
    ids = mask_kmers(*given, MASKING).token_ids  # some are corrupted already, which costs the same
    with one_thread():
        for name, step in {OURS: partial(mask_kmers, *given, MASKING), **tokenised(ids)}.items():
            measured, _ = measure(step, cpu)
            yield row(name, cpu, WORKER_BATCH, measured, bytes_of(given) if name == OURS else 4 * ids.nbytes)
    if device.type == "cuda":
        copied = torch.empty(2, COPIED, dtype=torch.uint8, device=device)
        measured, _ = measure(lambda: copied[0].copy_(copied[1]), device)
        bandwidth = 2 * COPIED / measured["p50_ms"] * 1e3
        for batch in (WORKER_BATCH, GPU_BATCH):
            given = batch_of(batch, device)
            measured, result = measure(partial(mask_kmers, *given, MASKING), device)
            floor = (bytes_of(given) + bytes_of(vars(result).values())) / bandwidth if result else None
            yield row(OURS, device, batch, measured, bytes_of(given), floor)


def row(name: str, device: torch.device, batch: int, measured: Row, sent: int, floor_s: float | None = None) -> Row:
    """sent: bytes of a batch that cross to the GPU: for a tokenised one int64 ids, labels, segment ids and mask."""
    ms = measured["p50_ms"]
    return {
        "what": name,
        "device": device.type,
        "batch": batch,
        "tokens": TOKENS,
        **{name: value for name, value in measured.items() if name != "peak_mib"},
        "tokens_per_s": batch * TOKENS / ms * 1e3 if ms else "",
        "bytes_per_sample": sent / batch,
        "floor_ms": floor_s * 1e3 if floor_s else "",
    }


def batch_of(batch: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """bases, window_kmers, sample and epoch of full rows of random bases."""
    generator = torch.Generator().manual_seed(0)
    kmers = torch.tensor([(TOKENS - 3 + region) // REGIONS for region in range(REGIONS)], dtype=torch.int32)
    n_bases = TOKENS - 3 + REGIONS * (K - 1)
    bases = torch.randint(0, 4, (batch, n_bases), dtype=torch.uint8, generator=generator)
    given = bases, kmers.repeat(batch, 1), torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
    return tuple(one.to(device) for one in given)


def tokenised(ids: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What a worker would run on rows that are tokenised already, int64 [batch, tokens]."""
    collate = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=RATE)
    collate_numpy = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=RATE, return_tensors="np")
    special = (ids < N_SPECIAL).long()
    lists = [{"input_ids": one} for one in ids.tolist()]
    tensors = [
        {"input_ids": one, "attention_mask": torch.ones_like(one), "special_tokens_mask": of_one}
        for one, of_one in zip(ids, special, strict=True)
    ]
    arrays = [{name: value.numpy() for name, value in one.items()} for one in tensors]
    bare = [one["input_ids"] for one in lists]
    rng = np.random.default_rng(0)
    return {
        f"{COLLATOR}lists": lambda: collate(lists),
        f"{COLLATOR}tensors and special_tokens_mask": lambda: collate(tensors),
        f"{COLLATOR}NumPy arrays and special_tokens_mask": lambda: collate_numpy(arrays),
        f"{COLLATOR}bare lists (no attention mask)": lambda: collate(bare),
        "NumPy port of DNABERT's span rule": lambda: dnabert_numpy(ids.numpy(), rng),
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Of k-mers, with the ids that `kernels.kmer_mask` gives."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + ["".join(letters) for letters in product("ATCG", repeat=K)]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **dict(zip(names, special, strict=True)))


def dnabert_numpy(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and labels, int64 [batch, tokens], of tokenised rows: the span rule of DNABERT, of all rows at once."""
    batch, tokens = ids.shape
    begins = rng.random((batch, tokens + SPAN - 1), dtype=np.float32) < 1 - (1 - RATE) ** (1 / SPAN)
    masked = ids >= N_SPECIAL
    masked &= np.logical_or.reduce([begins[:, shift : shift + tokens] for shift in range(SPAN)])
    before = ids[masked]
    kind = rng.random(len(before), dtype=np.float32)
    drawn = rng.integers(N_SPECIAL, N_SPECIAL + 4**K, len(before))
    token_ids = ids.copy()
    token_ids[masked] = np.where(kind < BECOMES_MASK, MASK, np.where(kind < 1 - STAYS, drawn, before))
    return token_ids, np.where(masked, ids, IGNORED)


def bytes_of(tensors) -> int:
    return sum(one.nbytes for one in tensors)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def goals(rows: list[Row]) -> list[Goal]:
    """The text, the figures by where they were measured, and what each must fulfil."""
    speed = {row["what"]: row["tokens_per_s"] for row in rows if row["device"] == "cpu" and row["p50_ms"]}
    against = {
        name.removeprefix(COLLATOR): speed[OURS] / its
        for name, its in speed.items()
        if name.startswith(COLLATOR) and OURS in speed
    }
    found = [("on a CPU at least 5 x the collator's tokens/s", against, lambda x: x >= 5)]
    on_gpu = [row for row in rows if row["device"] == "cuda" and row["batch"] == GPU_BATCH and row["p50_ms"]]
    if on_gpu:
        ms = {f"floor {row['floor_ms']:.3g} ms": row["p50_ms"] for row in on_gpu}
        found.append((f"{GPU_BATCH} x {TOKENS} on a GPU under 1 ms", ms, lambda x: x < 1))
    return found
