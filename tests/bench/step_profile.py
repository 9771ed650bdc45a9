"""Where a training step's time goes and what fused kernels would save, as CSV on stdout, the machine first.

    python tests/bench/step_profile.py
    python tests/bench/step_profile.py --world_size 32

The operations of a micro-batch of the real model are traced on tensors without memory, with their arithmetic and the
bytes that they move, and timed as on an H200 by the rates below: a prediction, without what ranks exchange. Each takes
as long as its arithmetic, its traffic or its launch, whichever is longest; those fused read once what others wrote and
write what others read. With a GPU the kernels of a step follow, as torch.profiler measures them.
"""

# ruff: noqa: E402
import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

sys.path[0] = str(Path(__file__).parents[2])

import pretrain.model
from kernels.infonce import info_nce
from kernels.kmer_mask import MaskedBatch, Masking, capacity_for, mask_kmers, span_tokens
from pretrain.config import ModelConfig, read_preset
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT
from pretrain.objectives import token_objectives
from tests.bench.machine import describe_machine
from tests.bench.print_csv import Row, print_csv

# Assumed of an H200: what good kernels reach, in operations and bytes a second, and the seconds of the shortest launch.
BF16, FP32, ATTENTION, MEMORY, LAUNCH = 600e12, 40e12, 300e12, 4.0e12, 3e-6
# Bytes a parameter, traced with DeepSpeed 0.19.8 on one rank. ZeRO-2 after each backward pass: a gradient goes to its
# bucket, is averaged, cast to bf16 and back, copied to its partition and added to those before (if there are any).
# A step: norm in fp64, flattening, clipping, the new weights' way back; AdamW (`torch_adam`), and if fused.
ZERO_A_PASS, ADDITION, ZERO_A_STEP, ADAMW, FUSED_ADAMW = 54, 12, 44, 80, 28
N_MOTIFS, N_REGIONS, MASK_RATE, SPAN = 579, 10, 0.15, "dnabert"
REPEATS, SHOWN = 3, 40  # micro-batches that are profiled, kernels that are printed

FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
UNREAD = {("nll_loss_forward", 0), ("nll_loss_backward", 1), ("copy_", 0), ("fill_", 0), ("zero_", 0)}
UNREAD |= {(name, 0) for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")}
READ_IN_PART = {("embedding", 0), ("index", 0), ("gather", 0)}  # only as much as is written
READ_TWICE = {"native_layer_norm_backward"}  # on CUDA, by two kernels
PRODUCTS = {"mm", "addmm", "bmm", "convolution", "convolution_backward"}
KINDS = {
    **dict.fromkeys(PRODUCTS, "matrix products"),
    **dict.fromkeys(("native_layer_norm", "native_layer_norm_backward"), "LayerNorm"),
    **dict.fromkeys(("gelu", "gelu_backward"), "GELU"),
    **dict.fromkeys(("clone", "roll", "constant_pad_nd", "cat", "stack", "slice_backward"), "copies"),
    **{"add": "additions", "_to_copy": "casts", "sum": "gradients of biases"},
}
WEIGHTS = "#weights"
PARTS = {  # by the first beginning of a module's name that fits
    "sequence.bert.embeddings": "embedding sum + LayerNorm",
    "sequence.bert.encoder": "sequence encoder",
    "sequence.cls.predictions.decoder": "MGM head: product with the classes",
    "sequence.cls.predictions": "MGM head: transform",
    "objectives": "MGM head: cross-entropy and accuracy",
    "region_image": "region image: standardise and resize",
    "region.patch_embed": "patch embedding",
    "region.": "region encoder",
    "": "k-mer mean, masked rows, projections, NGSP head",
}


@dataclass
class Op:
    """One launch. where: the module, also of its backward pass; reads, writes: bytes of each view (value, offset,
    bytes), where a value is what an operation wrote."""

    name: str
    where: str
    flops: float
    rate: float
    reads: dict[tuple[int, int, int], int]
    writes: dict[tuple[int, int, int], int]

    def __post_init__(self):
        moved = sum(self.reads.values()) + sum(self.writes.values())
        seconds = max(self.flops / self.rate, moved / MEMORY, LAUNCH)
        self.cost = np.array([1, self.flops, moved, seconds])
        in_attention = self.where.endswith((".attention.self", ".attn", ".attn.softmax"))
        self.kind = "attention" if in_attention else KINDS.get(self.name, "other elementwise")
        self.part = next(part for beginning, part in PARTS.items() if self.where.startswith(beginning))
        if self.where.endswith(WEIGHTS):
            self.kind = self.part = "casts of weights and of their gradients"
        elif self.part.endswith("encoder"):
            self.part += f": {self.kind}"


class Recorder(TorchDispatchMode):
    """Records the operations of a model, forward and back."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.ops = []
        self.scopes, self.made_by, self.last = [""], {}, ""
        self.value_of, self.n_values = {}, 0  # by storage
        self.parameters = {storage(parameter) for parameter in model.parameters()}
        for name, module in model.named_modules():
            module.forward = self.named(name, module.forward)

    def named(self, name: str, function: Callable) -> Callable:
        """The function, such that its operations are recorded under a name."""

        def run(*args, **kwargs):
            self.scopes.append(name)
            result = function(*args, **kwargs)
            self.scopes.pop()
            return result

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if func.namespace != "aten":  # asks for a device or the like
            return func(*args, **kwargs)
        where = self.where(name, args)
        result = func(*args, **kwargs)
        given = [(place, one) for place, argument in enumerate((*args, *kwargs.values())) for one in tensors(argument)]
        known = {storage(tensor) for _, tensor in given}
        written = [tensor for tensor in tensors(result) if func._schema.is_mutable or storage(tensor) not in known]
        if written and name not in FREE:  # else a view
            most = sum(map(n_bytes, written))
            reads = {}
            for place, tensor in given:
                if (name, place) not in UNREAD:
                    size = n_bytes(tensor) * (2 if name in READ_TWICE else 1)
                    reads[self.view(tensor)] = min(size, most) if (name, place) in READ_IN_PART else size
            for tensor in written:
                self.n_values += 1
                self.value_of[storage(tensor)] = self.n_values
            count = flop_registry.get(getattr(torch.ops.aten, name.replace("_for_cpu", "")))
            flops = float(count(*args, **kwargs, out_val=result)) if count else 0.0
            rate = ATTENTION if "attention" in name else BF16 if written[0].dtype == torch.bfloat16 else FP32
            self.ops.append(Op(name, where, flops, rate, reads, {self.view(one): n_bytes(one) for one in written}))
        return result

    def where(self, name: str, args: tuple) -> str:
        """The module that runs, or that made the autograd node that runs."""
        if torch._C._current_graph_task_id() == -1:
            of_weight = name == "_to_copy" and storage(args[0]) in self.parameters
            where = self.scopes[-1] + (WEIGHTS if of_weight else "")
            # The node of an operation, if it has one, was made just before.
            self.made_by.setdefault(torch.autograd._get_sequence_nr() - 1, where)
            return where
        if (node := torch._C._current_autograd_node()) is not None:  # none where gradients of two uses are added
            self.last = self.made_by.get(node._sequence_nr(), self.last)
        return self.last

    def view(self, tensor: torch.Tensor) -> tuple[int, int, int]:
        value = self.value_of.setdefault(storage(tensor), -storage(tensor))
        return value, tensor.storage_offset(), n_bytes(tensor)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def n_bytes(tensor: torch.Tensor) -> int:
    """Bytes in memory: an expanded dimension is there once."""
    there = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return math.prod(there) * tensor.element_size()


def in_fp32(function: Callable) -> Callable:
    return lambda tensor, *args, **kwargs: function(tensor.float(), *args, **kwargs)


def masking(config: ModelConfig) -> Masking:
    span = span_tokens(SPAN, config.k)
    slots = capacity_for(config.max_tokens, MASK_RATE, span)
    return Masking(config.k, config.max_tokens, span, MASK_RATE, slots, seed=0)


def trace(config: ModelConfig, micro_batch: int) -> tuple[list[Op], list[Op], int]:
    """The operations of a pass without gradient and of one forward and back; the number of parameters."""
    with torch.device("meta"):
        model = GeneBERT(config, torch.zeros(N_MOTIFS), torch.ones(N_MOTIFS))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.sequence.tie_weights()
        recorder = Recorder(model)
        ids = torch.zeros(micro_batch, config.max_tokens, dtype=torch.int64)
        slots = ids[:, : masking(config).capacity]
        batch = MaskedBatch(ids, ids, None, ids, slots, slots)  # rows are full
        binding = torch.zeros(micro_batch, N_REGIONS, N_MOTIFS, dtype=torch.float16)
        image = recorder.named("region_image", pretrain.model.region_image)
        # On a CPU, where alone such tensors run backward, but with what CUDA's autocast computes in fp32.
        cuda_autocast = mock.patch.multiple(F, layer_norm=in_fp32(F.layer_norm), softmax=in_fp32(F.softmax))
        with recorder, cuda_autocast, mock.patch.object(pretrain.model, "region_image", image):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                model(batch, binding, heads=False)
            first, recorder.ops = recorder.ops, []
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(batch, binding)
            parts = recorder.named("objectives", token_objectives)(outputs, batch, ids[:, 0], torch.ones(micro_batch))
            (parts.mgm_loss + parts.ngsp_loss + (outputs.sequence * outputs.region).sum()).backward()
    return first, recorder.ops, sum(parameter.numel() for parameter in model.parameters())


def fused(ops: list[Op], inside: Callable[[Op], bool], in_one: bool) -> np.ndarray:
    """Launches, flops, bytes and seconds that fusion of the operations inside saves, at most.

    in_one: all are fused, whatever they wait for, so that nothing is stored between forward and backward; else those
    with the same number of other operations before them. A cast that was made before is not made again. There is a
    launch for each that reads nothing of its group.
    """
    depth, group_of, used_by = defaultdict(int), {}, defaultdict(set)
    same, cast_to, groups = {}, {}, defaultdict(list)
    for op in ops:
        reads = {(same.get(value, value), *rest): size for (value, *rest), size in op.reads.items()}
        deepest = max((depth[value] for value, *_ in reads), default=0)
        group = (0 if in_one else deepest) if inside(op) else None
        for value, _, size in op.writes:
            depth[value], group_of[value] = deepest + (group is None), group
            if op.name == "_to_copy" and group is not None:
                same[value] = cast_to.setdefault((*reads, size), value)
        for value, *_ in reads:
            used_by[value].add(group)
        if group is not None:
            groups[group].append((op, reads))
    saved = np.zeros(4)
    for group, members in groups.items():
        moved = {view: size for _, reads in members for view, size in reads.items() if group_of.get(view[0]) != group}
        for op, _ in members:
            kept = (view for view in op.writes if same.get(view[0], view[0]) == view[0] and used_by[view[0]] != {group})
            moved |= {view: op.writes[view] for view in kept}
        flops, n = sum(op.flops for op, _ in members), sum(moved.values())
        launches = sum(all(group_of.get(view[0]) != group for view in reads) for _, reads in members)
        seconds = max(sum(op.flops / op.rate for op, _ in members), n / MEMORY, launches * LAUNCH)
        saved += sum(op.cost for op, _ in members) - [launches, flops, n, seconds]
    return saved


def predicted(config: ModelConfig, layout: BatchLayout) -> tuple[list[Row], list[Row]]:
    """The parts of one rank's step, and what could be saved of them."""
    first, both, n_parameters = trace(config, layout.micro_batch)
    rounds, rows = layout.accumulation, layout.micro_batch * layout.accumulation
    passes = [first, both] if rounds > 1 else [both]
    parts = defaultdict(lambda: np.zeros(4))
    for op in (op for ops in passes for op in ops):
        parts[op.part] += rounds * op.cost

    def memory(moved: float) -> np.ndarray:
        return np.array([0, 0, moved, moved / MEMORY])

    ids, own = 4 * config.max_tokens + 2 * masking(config).capacity, n_parameters / layout.world_size
    logits = rows * layout.global_batch
    flops, panels = 8 * logits * config.projection_size, 4 * logits * 3
    parts["masking kernel"] = memory(rows * (config.max_tokens + N_REGIONS * config.k + 8 * ids))
    parts["InfoNCE kernels, fp32"] = np.array([4, flops, panels, max(flops / FP32, panels / MEMORY)])
    parts["ZeRO-2: copies"] = memory(n_parameters * (ZERO_A_PASS * rounds - ADDITION) + own * ZERO_A_STEP)
    parts["AdamW"] = memory(own * ADAMW)
    whole = sum(parts.values())

    def row(of: str, name: str, entry: np.ndarray) -> Row:
        launches, flops, moved, seconds = entry
        numbers = {"GFLOP a sample": flops / rows / 1e9, "MB a sample": moved / rows / 1e6, "ms a step": seconds * 1e3}
        return {of: name, "launches a step": launches, **numbers, "share": seconds / whole[3]}

    def at(*modules: str, kinds: tuple[str, ...] = ()) -> Callable[[Op], bool]:
        return lambda op: op.where.startswith(modules) and (not kinds or op.kind in kinds)

    def elementwise(inside: Callable[[Op], bool]) -> Callable[[Op], bool]:
        return lambda op: inside(op) and not op.flops and not op.where.endswith(WEIGHTS)

    sequence, region, residual = "sequence.bert.encoder", "region.", ("LayerNorm", "additions", "casts", "copies")
    windows = at(region, kinds=("attention",))
    fusions = {
        "MGM head, from product to loss": (at("sequence.cls.predictions.decoder", "objectives"), True),
        "resize + patch embedding": (at("region_image", "region.patch_embed"), True),
        "embedding sum + LayerNorm": (at("sequence.bert.embeddings"), True),
        "additions + LayerNorm + casts, sequence encoder": (at(sequence, kinds=residual), False),
        "the same with shifts and windows, region encoder": (at(region, kinds=residual), False),
        "window attention, region encoder": (windows, True),
        "window attention but its products": (elementwise(windows), False),
        "both encoders but their products (torch.compile)": (elementwise(at(sequence, region)), False),
    }
    saved = {name: rounds * sum(fused(ops, *fusion) for ops in passes) for name, fusion in fusions.items()}
    others = [op for ops in passes for op in ops if op.where.endswith((".self.key", ".self.value"))]
    saved["one product for query, key and value"] = rounds * sum(
        (op.cost for op in others if op.kind in ("casts", "additions")), np.zeros(4)
    )
    saved["ZeRO-2's copies once a step"] = memory((rounds - 1) * n_parameters * (ZERO_A_PASS - ADDITION))
    saved["AdamW in one launch"] = memory(own * (ADAMW - FUSED_ADAMW))
    by_time = sorted(parts.items(), key=lambda entry: -entry[1][3])
    return (
        [row("part", name, entry) for name, entry in (("all", whole), *by_time)],
        [row("fused, saves at most", name, entry) for name, entry in saved.items()],
    )


def measured(config: ModelConfig, layout: BatchLayout, device: str = "cuda") -> Iterator[Row]:
    """The kernels that a rank's step takes longest in, without DeepSpeed: as it is, then with compiled encoders."""
    model = GeneBERT(config, torch.zeros(N_MOTIFS), torch.ones(N_MOTIFS)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    n, n_kmers = layout.micro_batch, config.max_tokens - 3
    window_kmers = torch.tensor([[(n_kmers + i) // N_REGIONS for i in range(N_REGIONS)]] * n, device=device)
    bases = torch.randint(4, (n, n_kmers + N_REGIONS * (config.k - 1)), dtype=torch.uint8, device=device)
    sample, weight = torch.arange(n, device=device), torch.ones(n, device=device)
    binding = torch.rand(n, N_REGIONS, N_MOTIFS, device=device)
    shape = 2, n * layout.accumulation, config.projection_size
    embeddings = F.normalize(torch.randn(shape, device=device), dim=2).requires_grad_()

    def micro_batch() -> None:
        batch = mask_kmers(bases, window_kmers, sample, torch.zeros_like(sample), masking(config))
        with torch.autocast(device, torch.bfloat16):
            if layout.accumulation > 1:
                with torch.no_grad():
                    model(batch, binding, heads=False)
            outputs = model(batch, binding)
        parts = token_objectives(outputs, batch, sample % 2, weight)
        (parts.mgm_loss + parts.ngsp_loss + (outputs.sequence * outputs.region).sum()).backward()

    def rest() -> None:
        info_nce(*embeddings, model.scale, torch.ones(shape[1], device=device)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for form in ("as it is", "compiled"):
        if form == "compiled":
            model.sequence.bert.encoder.compile()
            model.region.compile()
        kernels = defaultdict(lambda: np.zeros(2))
        for function, times in ((micro_batch, layout.accumulation), (rest, 1)):
            for _ in range(REPEATS):
                function()
            with torch.profiler.profile() as profiler:
                for _ in range(REPEATS):
                    function()
                torch.cuda.synchronize()
            for event in profiler.key_averages():
                if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
                    ms = event.self_device_time_total / 1e3
                    kernels[event.key] += np.array([event.count, ms]) * times / REPEATS
        whole = sum(kernels.values())
        for name, (launches, ms) in [("all", whole), *sorted(kernels.items(), key=lambda entry: -entry[1][1])[:SHOWN]]:
            yield {"model": form, "kernel": name, "launches a step": launches, "ms a step": ms, "share": ms / whole[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world_size", type=int, default=1, help="ranks that share the batch of 2000")
    layout = BatchLayout.of(2000, parser.parse_args().world_size, largest_micro_batch=64)
    config = ModelConfig(**read_preset("genebert-base"))
    packages = ("torch", "triton", "transformers", "timm", "deepspeed")
    print(describe_machine(packages), f"# {layout}", sep="\n", flush=True)
    for rows in predicted(config, layout):
        print_csv(rows)
    if torch.cuda.is_available():
        print_csv(measured(config, layout))


if __name__ == "__main__":
    main()
