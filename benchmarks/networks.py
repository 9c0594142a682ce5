"""Speed of U-Nets, ours and other libraries': ``python -m benchmarks.networks [--device cuda] [--compile]``.

Equal levels, blocks per level and images (4 × 14 × 14, from 28 × 28 grey ones with a patch of two), with channels
chosen for the nearest number of parameters to ours. The networks take turns to draw (calls without gradients) and train
(calls, backward and an AdamW step), in alternating order; a turn's time is this process's CPU time, which other
programs change little, or the device's time on a GPU. Printed are images per second, and ours over theirs in the same
round: median (quartiles) of the rounds. Ours is in both memory formats, as the library does not choose by the device.

``--compile`` adds each network under ``torch.compile``, a minute or so apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from proxflow.nn import UNet

SHAPE = 4, 14, 14
Sizes = tuple[int, int]


class Azula(nn.Module):
    """azula's U-Net, with a time embedding as wide as ours."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from azula.nn.unet import UNet as Theirs  # type: ignore[import-untyped,import-not-found,unused-ignore]

        width = 4 * channels
        self.embed = nn.Sequential(SineEncoding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.network = Theirs(
            4, 4, hid_channels=(channels, 2 * channels), hid_blocks=(blocks, blocks), mod_features=width
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.network(x, self.embed(t))
        return found


class Diffusers(nn.Module):
    """The U-Net of diffusers."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.network = UNet2DModel(  # type: ignore[no-untyped-call]
            sample_size=14, in_channels=4, out_channels=4, block_out_channels=(channels, 2 * channels),
            layers_per_block=blocks, norm_num_groups=8, add_attention=False, resnet_time_scale_shift="scale_shift",
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.network(x, 1000 * t).sample
        return found


def ours(channels: int, blocks: int) -> nn.Module:
    return UNet(SHAPE, channels=channels, multipliers=(1, 2), blocks=blocks)


def channels_last(channels: int, blocks: int) -> nn.Module:
    return ours(channels, blocks).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"proxflow, channels last": channels_last, "proxflow": ours}
if find_spec("azula"):
    NETWORKS["azula"] = Azula
if find_spec("diffusers"):
    NETWORKS["diffusers"] = Diffusers


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def of_size(build: Callable[[int, int], nn.Module], sizes: Sizes) -> nn.Module:
    """Return a network whose number of parameters is the nearest to ours, channels a multiple of eight."""
    wanted = parameters(ours(*sizes))
    best = min(range(8, 2 * sizes[0] + 1, 8), key=lambda n: abs(parameters(build(n, sizes[1])) - wanted))
    return build(best, sizes[1])


class Runner:
    """Draws and trains with a network on fixed images."""

    def __init__(self, network: nn.Module, batch: int, device: torch.device, compiled: bool) -> None:
        self.network, self.device = network.to(device), device
        for parameter in self.network.parameters():  # new last layers are zero
            nn.init.normal_(parameter, std=0.02)
        self.called = torch.compile(self.network) if compiled else self.network
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.x, self.t = torch.randn(batch, *SHAPE, device=device), torch.rand(batch, device=device)

    def draw(self) -> None:
        with torch.no_grad():
            self.called(self.x, self.t)

    def train(self) -> None:
        self.called(self.x, self.t).square().mean().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def rate(self, work: Callable[[], None], calls: int) -> float:
        """Return images per second."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        started = clock()
        for _ in range(calls):
            work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return calls * len(self.x) / (clock() - started)


def said(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="*", default=["16x1", "32x2"], help="channels x blocks a level, of ours")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    for word in options.sizes:
        channels, blocks = (int(part) for part in word.split("x"))
        runners = {
            name + ", compiled" * compiled: Runner(of_size(build, (channels, blocks)), options.batch, device, compiled)
            for name, build in NETWORKS.items()
            for compiled in ((False, True) if options.compile else (False,))
        }
        first = next(iter(runners))
        print(f"{word}: {'network':34} {'parameters':>10} {'draws, images/s':>26} {'ours over it':>20} {'trains':>22}")
        rates: dict[str, dict[str, list[float]]] = {name: {"draw": [], "train": []} for name in runners}
        for k in range(options.rounds + 1):
            order = list(runners.items())
            for name, runner in order[k % len(order) :] + order[: k % len(order)]:
                for what in ("draw", "train"):
                    found = runner.rate(getattr(runner, what), options.calls)
                    if k:  # the first round warms up
                        rates[name][what].append(found)
        for name, found in rates.items():
            columns = [
                said(values, ".0f")
                + " "
                + said([a / b for a, b in zip(rates[first][what], values, strict=True)], ".2f")
                for what, values in found.items()
            ]
            print(f"  {name:34} {parameters(runners[name].network):10,} " + " ".join(columns), flush=True)


if __name__ == "__main__":
    main()
