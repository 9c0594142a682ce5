"""Speed and accuracy of the Newton solver: many one-dimensional Gaussian problems at once, against their closed forms.

``python benchmarks/solver.py [problems] [threads]``; 100,000 problems on one thread by default (more do not help: the
pieces are small). Means are uniform on [−5, 5], standard deviations log-uniform on [0.1, 10], fractions uniform on [0,
1]; float64. For each divergence it prints the seconds, the largest error of a mean or standard deviation, and how many
problems did not converge.
"""

import sys
import time

import torch

from proxflow import KL, DiagonalGaussian, FisherRao, NewtonSolver, ReverseKL, Wasserstein2


def main(problems: int = 100_000, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)

    def uniform() -> torch.Tensor:
        return torch.rand(problems, generator=generator, dtype=torch.float64)

    belief, target = (DiagonalGaussian(10 * uniform() - 5, 10 ** (2 * uniform() - 1)) for _ in range(2))
    fraction = uniform()
    sys.stdout.write(f"{problems:,} problems, {threads} threads, PyTorch {torch.__version__}\n\n")
    sys.stdout.write("divergence      seconds  largest error  not converged  mean iterations\n")
    for divergence in (KL(), ReverseKL(), Wasserstein2(), FisherRao()):
        start = time.perf_counter()
        solution = NewtonSolver()(divergence, belief, target, fraction)
        seconds = time.perf_counter() - start
        exact = divergence.interpolate(belief, target, fraction).tensors()
        error = max(float((a - exact[name]).abs().max()) for name, a in solution.belief.tensors().items())
        failed = int((~solution.converged).sum())
        iterations = float(solution.iterations.double().mean())
        name = type(divergence).__name__
        sys.stdout.write(f"{name:14} {seconds:8.1f}  {error:13.1e}  {failed:13,}  {iterations:15.1f}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
