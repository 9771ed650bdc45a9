"""The kernels as they are compiled for an A100 (sm_80) and an H100 or H200 (sm_90), which need not be there.

`-s` prints what each launch takes.
"""

import contextlib
import functools
import itertools
import os
import re
from unittest import mock

import pytest
import triton
from triton.runtime.driver import driver

from kernels import dispatch
from tests.kernels.compile_only import ARCHITECTURES, Launch, compiling_for, launch_info_nce, launch_mask_kmers, row

pytestmark = pytest.mark.skipif(dispatch.interpreted(), reason="nothing is compiled under TRITON_INTERPRET=1")
# The newest is compiled for in every run of the tests.
ARCHS = [*(pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHITECTURES[:-1]), ARCHITECTURES[-1]]

REGISTERS = 65536  # of a multiprocessor of any of these GPUs, and so of a block
SHARED = 99 * 1024  # bytes that a block may have on every GPU from sm_80 on; sm_80 has 163 KiB, sm_90 227
GRID = 2**31 - 1, 65535, 65535
LARGE = 2**20  # pairs in a batch that one card is to hold
PRECISIONS = "bf16", "ieee", "tf32x3", "tf32"


@pytest.fixture(autouse=True, scope="module")
def _nothing_compiled_before(tmp_path_factory):
    with mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))):
        yield


@functools.cache
def launches_of(arch: int, function, **settings) -> list[Launch]:
    with compiling_for(arch) as launches:
        function(**settings)
    return launches


def cases(covering: list[dict], **each) -> list:
    """Every combination of `each`; of these only the covering ones are compiled where slow tests are left out."""
    combinations = [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]
    assert all(settings in combinations for settings in covering)
    return [
        pytest.param(
            settings,
            id=" ".join(map(str, settings.values())),
            marks=() if settings in covering else pytest.mark.slow,
        )
        for settings in combinations
    ]


MASKS = cases(
    [
        {"k": 3, "tokens": 512, "rule": "bases=2"},
        {"k": 4, "tokens": 256, "rule": "dnabert"},
        {"k": 5, "tokens": 5120, "rule": "bases=2"},
        {"k": 6, "tokens": 512, "rule": "dnabert"},
    ],
    k=[3, 4, 5, 6],
    tokens=[256, 512, 5120],
    rule=["dnabert", "bases=2"],
)
EMBEDDINGS = cases(
    [
        *({"precision": precision, "batch": 2000, "d": 512, "loss": "clip"} for precision in PRECISIONS),
        {"precision": "bf16", "batch": 2000, "d": 512, "loss": "paper"},
        {"precision": "ieee", "batch": 1001, "d": 128, "loss": "paper"},
        {"precision": "bf16", "batch": 1001, "d": 768, "loss": "clip"},
        {"precision": "bf16", "batch": 1, "d": 256, "loss": "clip"},
        {"precision": "bf16", "batch": 16384, "d": 256, "loss": "clip"},
    ],
    precision=PRECISIONS,
    batch=[2000, 1001, 1, 16384],
    d=[128, 256, 512, 768],
    loss=["clip", "paper"],
)


def check(launch: Launch, spilt: int = 0) -> None:
    print(*row(launch).values())
    assert launch.cubin.startswith(b"\x7fELF")
    used = launch.resources
    assert max(used.stack, used.spill_stores, used.spill_loads) <= spilt
    assert used.registers * 32 * launch.num_warps <= REGISTERS
    assert launch.shared <= SHARED
    assert all(0 < size <= limit for size, limit in zip(launch.grid, GRID, strict=False))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("settings", MASKS)
def test_the_mask_kernel_keeps_all_in_registers_and_counts_in_whole_numbers(arch, settings):
    (launch,) = launches_of(arch, launch_mask_kmers, **settings)
    check(launch)
    assert not re.findall(r"\.(?:bf16|f16|f32|f64)\b", launch.ptx)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("settings", EMBEDDINGS)
def test_the_infonce_kernels_keep_all_in_registers(arch, settings):
    launches = launches_of(arch, launch_info_nce, **settings)
    assert {"_log_sum_exps_kernel", "_gradient_kernel"} <= {launch.kernel for launch in launches}
    for launch in launches:
        # TF32 is not taken unless asked for: two registers may be spilt, as on sm_80 at d = 768.
        check(launch, spilt=8 if settings["precision"] in ("tf32", "tf32x3") else 0)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("batch", "world"), [(250, 8), (1, 3)])
def test_a_rank_among_others_keeps_all_in_registers(arch, batch, world):
    """Its rows begin at a column that no power of two divides, and its tables at any address."""
    for launch in launches_of(arch, launch_info_nce, batch=batch, world=world):
        check(launch)


def products(arch: int, precision: str) -> list[list[str]]:
    """The tensor cores' instructions in the two kernels that multiply."""
    launches = launches_of(arch, launch_info_nce, precision=precision, batch=2000, d=512, loss="clip")
    return [
        re.findall(r"(?:wgmma\.mma_async|mma\.sync)\.\S+", launch.ptx)
        for launch in launches
        if launch.kernel in ("_log_sum_exps_kernel", "_gradient_kernel")
    ]


@pytest.mark.parametrize(
    ("arch", "product"), [(80, r"mma\.sync.*\.f32\.bf16\.bf16\.f32"), (90, r"wgmma.*\.f32\.bf16\.bf16")]
)
def test_bf16_is_multiplied_on_tensor_cores_and_summed_in_fp32(arch, product):
    for found in products(arch, "bf16"):
        assert found
        assert all(re.fullmatch(product, instruction) for instruction in found)


@pytest.mark.parametrize("arch", ARCHS)
def test_ieee_is_not_rounded_to_tf32(arch):
    assert products(arch, "ieee") == [[], []]
    assert not [launch for launch in launches_of(arch, launch_info_nce, precision="ieee") if "tf32" in launch.ptx]


@pytest.mark.parametrize("arch", ARCHS)
def test_tf32x3_multiplies_three_times_in_tf32(arch):
    for once, thrice in zip(products(arch, "tf32"), products(arch, "tf32x3"), strict=True):
        assert all(".tf32.tf32" in instruction for instruction in (*once, *thrice))
        assert len(thrice) >= 3 * len(once) > 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("batch", [2000, 1001])
def test_the_gradient_of_the_logits_is_stored_16_bytes_at_a_time(arch, batch):
    for launch in launches_of(arch, launch_info_nce, batch=batch):
        if launch.kernel == "_gradient_kernel":
            assert set(re.findall(r"st\.global\.\S+", launch.ptx)) == {
                "st.global.v4.b32",
                "st.global.b32",
            }  # and its sum


def largest_numbers(launch: Launch) -> list[tuple[str, int]]:
    """Bits, and the largest value in the launch, of each product and sum that the arguments and the grid decide.

    Follows the kernel's intermediate code from top to bottom. What comes from a tensor's content, or could be negative,
    is left out.
    """
    values = {f"%{name}": value for name, value in launch.arguments.items()}
    found = []
    for line in launch.ttir.splitlines():
        if loop := re.search(r"scf\.for (%\S+) = %\S+ to (%\S+) ", line):
            values[loop[1]] = values[loop[2]]
        operation = re.match(r"\s*(%\S+) = (arith|tt)\.(\w+) (.*?)(?: loc\(.*)?$", line)
        if not operation:
            continue
        result, _, name, rest = operation.groups()
        known = [values.get(operand) for operand in re.findall(r"%[^\s,:]+", rest)]
        if name == "constant" and (number := re.match(r"(?:dense<)?(\d+)>? :", rest)):
            values[result] = int(number[1])
        elif name == "make_range":
            values[result] = int(re.search(r"end = (\d+)", rest)[1])
        elif name in ("get_program_id", "get_num_programs"):
            values[result] = launch.grid["xyz".index(rest[0])]
        elif name in ("splat", "expand_dims", "broadcast", "extsi"):
            values[result] = known[0]
        elif name in ("divsi", "remsi") and None not in known:
            values[result] = known[0] // known[1] if name == "divsi" else min(known)
        elif name in ("muli", "addi") and None not in known:
            values[result] = known[0] * known[1] if name == "muli" else known[0] + known[1]
            found.append((re.search(r"i(32|64)>?$", rest)[1], values[result]))
    return found


@pytest.mark.parametrize(
    ("function", "settings", "kernels"),
    [
        (launch_mask_kmers, {"batch": GRID[0]}, {"_mask_kmers_kernel"}),
        (
            launch_info_nce,
            {"precision": "bf16", "batch": LARGE, "d": 2048},
            {"_log_sum_exps_kernel", "_gradient_kernel"},
        ),
        (
            launch_info_nce,
            {"precision": "ieee", "batch": LARGE, "d": 2048},
            {"_log_sum_exps_kernel", "_gradient_kernel"},
        ),
    ],
)
def test_no_index_of_32_bits_overflows_where_offsets_exceed_them(function, settings, kernels):
    past_32_bits = set()
    for launch in {launch.kernel: launch for launch in launches_of(80, function, **settings)}.values():
        for bits, value in largest_numbers(launch):
            assert value < 2 ** (int(bits) - 1), launch.kernel
            if value >= 2**31:
                past_32_bits.add(launch.kernel)
    assert past_32_bits == kernels


@pytest.mark.parametrize("precision", ["bf16", "ieee"])
def test_a_million_pairs_are_within_the_limits_of_a_launch(precision):
    launches = launches_of(90, launch_info_nce, precision=precision, batch=LARGE, d=256)
    for launch in {(launch.kernel, launch.grid): launch for launch in launches}.values():
        check(launch)


def test_afterwards_kernels_are_launched_again():
    def state():
        return driver._active, triton.JITFunction.run, dispatch.chosen, os.environ.get("GENEBERT_KERNELS")

    before = state()
    with contextlib.suppress(KeyError), compiling_for(90):
        assert all(now is not then for now, then in zip(state(), before, strict=True))
        raise KeyError
    assert state() == before
