"""Shards before the first step: verified in place, or staged from a URL, a part by each rank."""

import os
import time
from collections import deque
from functools import partial

import torch
import torch.distributed as dist
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.remote_file import url
from data_prep.shard_cache import ShardCache
from data_prep.shard_reader import verify_shard
from pretrain import ranks

SECONDS_BETWEEN_MEETINGS = 20


def stage_or_verify(location: str, manifest: dict, cache: ShardCache | None) -> None:
    """Check every shard's sha256, a part of them on each rank. Raises `InputError` on all ranks if one fails.

    Shards of a URL are staged, on each node by its own ranks. Where the cache does not hold them all, only what is
    there already is checked, and readers stage what they need.
    """
    what, check, part, parts = "verifying", partial(verify_shard, location), dist.get_rank(), dist.get_world_size()
    if cache:
        what, check = ("staging", cache.stage) if cache.holds_all else ("verifying", cache.check)
        part = int(os.environ.get("LOCAL_RANK") or 0)
        parts = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        if not cache.holds_all:
            ranks.say(
                f"{url(location)}: {cache.n_bytes / 1e9:.3g} GB of shards, the cache may hold "
                f"{cache.limit / 1e9:.3g}: they are staged while the run reads them, and steps wait for the network"
            )
    left = deque(manifest["shards"][part::parts])
    progress = tqdm(
        total=sum(entry["bytes"] for entry in left),
        desc=f"{what} shards",
        unit="B",
        unit_scale=True,
        disable=None if ranks.is_first() else True,
    )
    # Ranks meet every few seconds: one that is done waits no longer for the others than a collective may take.
    while ranks.summed(torch.tensor(len(left), device=ranks.device())):
        failed, until = None, time.monotonic() + SECONDS_BETWEEN_MEETINGS
        try:
            while left and time.monotonic() < until:
                check(left[0])
                progress.update(left.popleft()["bytes"])
        except InputError as error:
            failed = error
        ranks.raise_together(failed)
    progress.close()
