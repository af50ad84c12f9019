"""How the losses of several tasks become the one that is minimised: fixed, by learnt uncertainty, or Nash-MTL.

Sources: Kendall, Gal and Cipolla 2018 (uncertainty); Navon et al. 2022, "Multi-Task Learning as a Bargaining Game"
(Nash-MTL).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.errors import InputError
from train.config import FracSegNetRun, Run

Float64 = npt.NDArray[np.float64]

UNCERTAINTY_RATE = 0.02
"""Step of the gradient descent on the log variances: half of a wrong start is gone after some seventy steps. They are
learnt apart from the network, whose optimiser moves no number by more than its learning rate a step: too slow."""
RIDGE = 1e-6
"""Added to the cosines' diagonal: where gradients cancel out exactly, no weights solve the bargaining problem."""


class Balancer(Protocol):
    """What the loop calls once for each batch."""

    def total(self, network: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise, from what ``Task.losses`` gave."""
        ...

    def weights(self) -> dict[str, float]:
        """By task, what the last total was made with; empty where the task has fixed weights of its own."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; a state of another kind of weighting, or none, leaves this one at its start."""
        ...


class FixedWeights:
    """The task's own sum, with the weights of its run."""

    def total(self, network: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
        """See Balancer."""
        return parts["loss"]

    def weights(self) -> dict[str, float]:
        """See Balancer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See Balancer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Balancer."""


class UncertaintyWeights:
    """Sum of exp(-s) L + s / 2 with a learnt log variance s for each task; they start at the fixed weights.

    That is Kendall's loss for classification, used for every task. At rest a task's weight is half the inverse of its
    mean loss. The gradient with respect to s is known, so s is a plain number and needs neither graph nor device.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.log_variances = {task: -math.log(weight) for task, weight in weights.items()}

    def total(self, network: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
        """See Balancer. Steps the log variances after reading them; a loss of 0 (nothing known) moves none."""
        weights = self.weights()
        total = torch.stack([weights[task] * parts[task] for task in weights]).sum()
        for task, weight in weights.items():
            loss = float(parts[task].detach())
            if loss != 0 and math.isfinite(loss):
                self.log_variances[task] -= UNCERTAINTY_RATE * (0.5 - weight * loss)
        return total

    def weights(self) -> dict[str, float]:
        """See Balancer."""
        return {task: math.exp(-s) for task, s in self.log_variances.items()}

    def state_dict(self) -> dict[str, Any]:
        """See Balancer."""
        return {"uncertainty": dict(self.log_variances)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Balancer."""
        self.log_variances = dict(state.get("uncertainty", self.log_variances))


class NashWeights:
    """The Nash bargaining solution: no task can gain relatively more than the others lose together.

    The weights solve G^T G a = 1 / a, where G's columns are the gradients of the tasks with respect to the parameters
    that all of them share (``network.shared_parameters()``). They don't depend on the scales of the losses, and the
    joined gradient of these parameters has the norm sqrt(number of tasks).

    Args:
        tasks: names of the losses.
        every: steps between two solutions; each costs a backward pass per task.
    """

    def __init__(self, tasks: Sequence[str], every: int) -> None:
        self.every, self.step = every, 0
        self._weights = dict.fromkeys(tasks, 1.0)

    def total(self, network: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
        """See Balancer. A task without a gradient (nothing known in the batch) keeps its weight."""
        if self.step % self.every == 0:
            shared = network.shared_parameters()  # type: ignore[operator]
            gram = gram_matrix([parts[task] for task in self._weights], shared)
            names, there = list(self._weights), np.flatnonzero(np.diag(gram) > 0)
            if np.isfinite(gram).all() and len(there):
                solved = nash_weights(gram[np.ix_(there, there)])
                self._weights |= {names[k]: float(weight) for k, weight in zip(there, solved, strict=True)}
        self.step += 1
        return torch.stack([weight * parts[task] for task, weight in self._weights.items()]).sum()

    def weights(self) -> dict[str, float]:
        """See Balancer."""
        return dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """See Balancer."""
        return {"nash": {"weights": dict(self._weights), "step": self.step}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Balancer."""
        if "nash" in state:
            self._weights, self.step = dict(state["nash"]["weights"]), state["nash"]["step"]


def gram_matrix(losses: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Float64:
    """(n, n): inner products of the gradients of ``losses`` with respect to ``parameters``. The graph is kept."""
    shared = [p for p in parameters if p.requires_grad]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, shared, strict=True)])
        )
    gradients = torch.stack(rows).double()
    gram: Float64 = (gradients @ gradients.T).cpu().numpy()
    return gram


def nash_weights(gram: npt.ArrayLike, *, tolerance: float = 1e-10, most: int = 200) -> Float64:
    """The positive a (n,) with ``gram @ a = 1 / a``, for a Gram matrix (n, n) with a positive diagonal.

    The solution is where a' K a / 2 - sum(log a) is least. That function is strictly convex and self-concordant, so
    Newton's method with damped steps finds its one minimum from anywhere and never leaves a > 0. The authors solve a
    sequence of convex programs for the same equation. Solved for cosines, so that the losses' scales drop out.

    Raises:
        ValueError: a diagonal element isn't positive and finite.
    """
    K = np.asarray(gram, dtype=np.float64)
    squares = np.diag(K)
    if not (np.isfinite(squares) & (squares > 0)).all():
        raise ValueError(f"The tasks' gradients need positive, finite lengths; met the squares {squares.tolist()}.")
    norms = np.sqrt(squares)
    cosines = K / np.outer(norms, norms) + RIDGE * np.eye(len(K))
    a = np.ones(len(K))
    for _ in range(most):
        gradient = cosines @ a - 1 / a
        step = np.linalg.solve(cosines + np.diag(1 / a**2), gradient)
        decrement = math.sqrt(max(float(gradient @ step), 0.0))
        a = a - step / (1 + decrement if decrement > 0.25 else 1.0)
        if decrement < tolerance:
            break
    weights: Float64 = a / norms
    return weights


def balancer_of(run: Run, *, devices: int) -> Balancer:
    """What the run asks for.

    Raises:
        InputError: it can't be done on several devices, or in this precision.
    """
    if not isinstance(run, FracSegNetRun) or run.task_weighting == "fixed":
        return FixedWeights()
    if devices > 1:
        raise InputError(
            f"task_weighting={run.task_weighting} weighs the losses of one device and would differ between {devices}; "
            "use --devices 1 or task_weighting=fixed."
        )
    tasks = {"grade": run.grade_weight}
    if run.network.mask_channels:
        tasks["mask"] = run.mask_weight
    if run.network.heights:
        tasks["heights"] = run.height_weight
    tasks = {task: weight for task, weight in tasks.items() if weight > 0}
    if run.task_weighting == "uncertainty":
        return UncertaintyWeights(tasks)
    if run.loop.precision == "16-mixed":
        raise InputError(
            "task_weighting=nash takes gradients without the scaling that 16-mixed needs; use bf16-mixed or 32-true."
        )
    return NashWeights(tuple(tasks), run.nash_every)
