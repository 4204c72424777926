"""Views for training: ours beside a plain torch Dataset and DataLoader, same tiles, one run.

    python bench/bench_training.py --tiles path/to/tile path/to/another --json out.jsonl

Both draw two views of 40 + 40 dates of shuffled pixels of all tiles, standardise them and give
batches of float32 tensors. The alternative draws pixel by pixel in numpy from memory-mapped files
or from arrays in memory, in 0 to --threads workers, and is timed at what suits it best. Ours reads
the files into its pool before; they are in the page cache for all. Batches that were prepared
while another ran are not counted. Without --tiles: two
synthetic tiles. --steps also times whole steps of v2-nano, with --threads threads.
"""

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import tessera_fast as tf
import timing
from tessera_fast.spec import ModelSpec, released
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.training.loop import series_of
from tessera_fast.training.network import TrainingNetwork
from tessera_fast.training.objectives import Twins
from tessera_fast.training.views import DATES, Views

MIN_DATES = 20
AHEAD = 2  # batches a worker prepares, torch's default
SETTLED = 2.0  # seconds in which the workers of the last turn fill up again and then rest


class Plain(Dataset):
    """A pixel an item: eight tensors, (bands, days) of both streams of two views."""

    def __init__(self, folders: list[Path], spec: ModelSpec, mapped: bool) -> None:
        mode = "r" if mapped else None
        self.tiles = []
        self.pixels: list[tuple[int, int, int]] = []
        for number, folder in enumerate(folders):
            names = ["bands", "masks", "doys"]
            orbits = [n for n in ("ascending", "descending") if (folder / f"sar_{n}.npy").exists()]
            names += [f"sar_{n}{s}" for n in orbits for s in ("", "_doy")]
            tile = {n: np.load(folder / f"{n}.npy", mmap_mode=mode) for n in names}
            seen = sum((tile[f"sar_{n}"] != 0).any(-1).sum(0) for n in orbits)
            enough = (tile["masks"].sum(0) >= MIN_DATES) & (seen >= MIN_DATES)
            self.tiles.append((tile, orbits))
            self.pixels += [(number, int(y), int(x)) for y, x in np.argwhere(enough)]
        stats = spec.statistics
        self.s2 = np.float32(stats.s2_mean), np.float32(stats.s2_std) + np.float32(1e-9)
        self.s1 = np.float32(stats.s1_mean), np.float32(stats.s1_std) + np.float32(1e-9)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        number, y, x = self.pixels[i]
        tile, orbits = self.tiles[number]
        bands, days = tile["bands"][:, y, x], tile["doys"]
        clear = np.flatnonzero(tile["masks"][:, y, x])
        radar = np.concatenate([tile[f"sar_{n}"][:, y, x] for n in orbits])
        radar_days = np.concatenate([tile[f"sar_{n}_doy"] for n in orbits])
        row = np.concatenate(
            [np.full(len(tile[f"sar_{n}"]), n == "descending", int) for n in orbits]
        )
        seen = np.flatnonzero((radar != 0).any(-1))
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        out = []
        for _ in range(2):
            a = np.sort(rng.choice(clear, DATES, replace=len(clear) < DATES))
            b = np.sort(rng.choice(seen, DATES, replace=len(seen) < DATES))
            out += [
                (bands[a].astype(np.float32) - self.s2[0]) / self.s2[1],
                days[a].astype(np.float32),
                (radar[b].astype(np.float32) - self.s1[0][row[b]]) / self.s1[1][row[b]],
                radar_days[b].astype(np.float32),
            ]
        return tuple(map(torch.from_numpy, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiles", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", action="store_true", help="time steps of training as well")
    parser.add_argument("--json", type=Path, help="write one row a contender")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders = args.tiles
        if folders is None:
            folders = [
                write_tile(synthetic_tile(128, 128, seed=s), Path(scratch) / f"tile_{s}")
                for s in (1, 2)
            ]
        rows = loaders(folders, args)
        if args.steps:
            rows += steps(folders, args)
    if args.json:
        timing.write_rows(args.json, rows)


def loaders(folders: list[Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of ours and of every setting of the alternative; prints as it goes."""
    spec = released("v2-nano")
    tiles = [tf.open_tile(folder) for folder in folders]
    views = Views(tiles, spec, args.batch, min_dates=MIN_DATES, threads=args.threads)
    feeds: dict[str, tuple[Any, int]] = {
        "tessera_fast": (((b.views[0].s2, b.views[1].s1) for b in views.batches()), 1)
    }
    for mapped, workers in itertools.product((True, False), range(args.threads + 1)):
        data = Plain(folders, spec, mapped)
        loader = DataLoader(
            data,
            args.batch,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
            prefetch_factor=AHEAD if workers else None,
        )
        where = "mapped" if mapped else "in memory"
        label = f"torch DataLoader, {where}, {workers} workers"
        ready = AHEAD * workers  # batches that wait when its turn comes
        feeds[label] = ((b[0], b[6]) for b in endless(loader)), 1 + ready
    seconds: dict[str, list[float]] = {label: [] for label in feeds}
    means: dict[str, np.ndarray] = {}
    for _, (label, (feed, untimed)) in itertools.product(range(args.rounds), feeds.items()):
        time.sleep(SETTLED)
        means[label] = mean_of(list(itertools.islice(feed, untimed)).pop())
        started = time.perf_counter()
        for _ in itertools.islice(feed, args.batches):
            pass
        seconds[label].append(time.perf_counter() - started)
    ours = means["tessera_fast"]
    for label, mean in means.items():  # of random pixels and dates, so alike and not equal
        if np.abs(mean - ours).max() > 0.2:
            raise SystemExit(f"{label}: its bands have another mean: {mean} and {ours}")
    rows = []
    for label, times in seconds.items():
        stats = timing.summary(times)
        rate = 2 * args.batch * args.batches / stats["median_s"]
        rows.append(
            {
                "bench": "training views",
                "contender": label,
                "views_s": rate,
                **stats,
                "batch": args.batch,
                "threads": args.threads,
                "tiles": [f.name for f in folders],
                **timing.machine(),
            }
        )
        print(f"{label:42} {rate:10,.0f} views/s  spread {stats['spread']:.0%}")
    best = max(row["views_s"] for row in rows[1:])
    print(f"{rows[0]['views_s'] / best:.1f}x the best of the alternative")
    return rows


def endless(loader: DataLoader) -> Any:
    while True:
        yield from loader


def mean_of(arrays: tuple[Any, Any]) -> np.ndarray:
    """Of every band."""
    return np.concatenate([np.asarray(a).reshape(-1, a.shape[-1]).mean(0) for a in arrays])


def steps(folders: list[Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole steps of v2-nano in both precisions, and the share of one that the views are."""
    spec, batch = released("v2-nano"), 128
    tiles = [tf.open_tile(folder) for folder in folders]
    views = Views(tiles, spec, batch, min_dates=MIN_DATES, threads=args.threads)
    feed = views.batches()
    objective = Twins(
        TrainingNetwork(spec),
        width=2048,
        layers=2,
        mixup=True,
        prefixes=(128,),
        weights=(),
        int8=False,
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    order, share, cpu = torch.arange(batch), torch.tensor(0.5), torch.device("cpu")
    torch.set_num_threads(args.threads)
    drawn = [next(feed)]

    def draw() -> None:
        drawn[0] = next(feed)

    def learn(precision: str) -> None:
        views = [series_of(v, cpu) for v in drawn[0].views]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outcome = objective(views, order, share)
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 2.0)
        optimizer.step()

    contenders = {"views": draw} | {f"step, {p}": partial(learn, p) for p in ("fp32", "bf16")}
    rows = []
    for label, times in timing.interleaved(contenders, args.rounds).items():
        stats = timing.summary(times)
        rows.append(
            {
                "bench": "training step",
                "contender": label,
                "model": spec.name,
                "views_s": 2 * batch / stats["median_s"],
                "batch": batch,
                **stats,
                "threads": args.threads,
                **timing.machine(),
            }
        )
        print(f"{spec.name} {label:38} {rows[-1]['views_s']:10,.0f} views/s")
    return rows


if __name__ == "__main__":
    main()
