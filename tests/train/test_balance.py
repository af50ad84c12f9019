"""Task weights: Nash-MTL's equation and its invariances, uncertainty's resting point, and runs that go on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runtime.errors import InputError
from train.balance import (
    FixedWeights,
    NashWeights,
    UncertaintyWeights,
    balancer_of,
    gram_matrix,
    nash_weights,
)
from train.config import FracSegNetRun, LocNetRun


def gradients(seed: int, tasks: int = 3, size: int = 40) -> np.ndarray:
    """(tasks, size), of very different lengths and partly in conflict."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tasks, size)) * 10.0 ** rng.uniform(-3, 3, (tasks, 1)) + rng.normal(size=size) * 0.3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_weights_solve_the_bargaining_equation(seed: int, tasks: int) -> None:
    G = gradients(seed, tasks)
    a = nash_weights(G @ G.T)
    assert (a > 0).all()
    np.testing.assert_allclose(G @ G.T @ a * a, 1, rtol=1e-3)
    assert np.linalg.norm(a @ G) == pytest.approx(math.sqrt(tasks), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3))
def test_the_joined_gradient_does_not_depend_on_the_losses_scales(seed: int, scales: list[float]) -> None:
    G = gradients(seed)
    scaled = G * np.array(scales)[:, None]
    direction, other = nash_weights(G @ G.T) @ G, nash_weights(scaled @ scaled.T) @ scaled
    np.testing.assert_allclose(direction, other, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10**6))
def test_every_task_gains_along_the_joined_gradient(seed: int) -> None:
    G = gradients(seed)
    assert (G @ (nash_weights(G @ G.T) @ G) > 0).all()


def test_orthogonal_gradients_are_brought_to_length_one() -> None:
    np.testing.assert_allclose(nash_weights(np.diag([4.0, 0.25, 1.0])), [0.5, 2.0, 1.0], rtol=1e-5)


def test_weights_are_those_of_a_general_minimiser() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    G = gradients(3)
    K = G @ G.T
    norms = np.sqrt(np.diag(K))
    cosines = K / np.outer(norms, norms)
    found = optimize.root(lambda x: cosines @ np.exp(x) - np.exp(-x), np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(nash_weights(K), np.exp(found.x) / norms, rtol=1e-5)


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_gradients_that_cancel_out_or_agree_have_finite_weights(cosine: float) -> None:
    a = nash_weights([[1.0, cosine], [cosine, 1.0]])
    assert np.isfinite(a).all()
    assert a[0] == pytest.approx(a[1])


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_gradients_without_length_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        nash_weights([[1.0, 0.0], [0.0, wrong]])


class TwoHeads(nn.Module):
    """Two tasks on one shared layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.unet.parameters())

    def parts(self, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.unet(torch.arange(15.0).reshape(5, 3) / 10))
        first, second = (self.first(x) - 1).square().mean(), scale * (self.second(x) + 1).square().mean()
        return {"loss": first + second, "first": first, "second": second}


def shared_gradient(network: TwoHeads, total: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    total.backward()
    return network.unet.weight.grad.clone()


def test_the_gram_matrix_is_of_the_gradients_that_backward_gives() -> None:
    network = TwoHeads()
    rows = []
    for task in ("first", "second"):
        shared_gradient(network, network.parts()[task])
        rows.append(torch.cat([p.grad.flatten() for p in network.unet.parameters()]).double())
    expected = torch.stack(rows) @ torch.stack(rows).T
    parts = network.parts()
    found = gram_matrix([parts["first"], parts["second"]], network.unet.parameters())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_nash_training_is_indifferent_to_a_task_s_scale() -> None:
    network = TwoHeads()
    one, other = NashWeights(("first", "second"), 1), NashWeights(("first", "second"), 1)
    plain = shared_gradient(network, one.total(network, network.parts()))
    scaled = shared_gradient(network, other.total(network, network.parts(scale=500.0)))
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-7)
    assert other.weights()["second"] == pytest.approx(one.weights()["second"] / 500, rel=1e-4)


def test_nash_weights_stay_between_solutions_and_without_evidence() -> None:
    network = TwoHeads()
    nash = NashWeights(("first", "second"), 3)
    nash.total(network, network.parts())
    first = nash.weights()
    nash.total(network, network.parts(scale=7.0))
    nash.total(network, network.parts(scale=7.0))
    assert nash.weights() == first
    parts = network.parts()
    nash.total(network, parts | {"second": parts["second"] * 0})
    assert nash.weights()["second"] == first["second"]


def test_uncertainty_comes_to_rest_at_half_the_inverse_loss() -> None:
    network = TwoHeads()
    weights = UncertaintyWeights({"first": 1.0, "second": 2.0})
    parts = {"first": torch.tensor(0.1), "second": torch.tensor(4.0)}
    assert weights.total(network, parts).item() == pytest.approx(0.1 + 2 * 4.0), "it starts at the given weights"
    for _ in range(2000):
        weights.total(network, parts)
    assert weights.weights()["first"] == pytest.approx(0.5 / 0.1, rel=1e-2)
    assert weights.weights()["second"] == pytest.approx(0.5 / 4.0, rel=1e-2)
    before = weights.weights()
    weights.total(network, {"first": torch.tensor(0.0), "second": torch.tensor(0.0)})
    assert weights.weights() == before, "where nothing was known nothing is learnt"


@pytest.mark.parametrize("make", [lambda: UncertaintyWeights({"first": 1.0, "second": 1.0}),
                                  lambda: NashWeights(("first", "second"), 2), FixedWeights])  # fmt: skip
def test_a_balancer_goes_on_where_its_state_was_taken(make) -> None:
    network, unbroken = TwoHeads(), make()
    totals = [unbroken.total(network, network.parts(scale=k)).item() for k in range(1, 6)]
    broken, resumed = make(), make()
    for k in (1, 2):
        broken.total(network, network.parts(scale=k))
    resumed.load_state_dict(broken.state_dict())
    assert [resumed.total(network, network.parts(scale=k)).item() for k in (3, 4, 5)] == totals[2:]
    resumed.load_state_dict({})


def test_what_a_run_asks_for_is_made_or_refused() -> None:
    run = FracSegNetRun()
    assert isinstance(balancer_of(run, devices=4), FixedWeights)
    assert isinstance(balancer_of(LocNetRun(), devices=1), FixedWeights)
    uncertainty = balancer_of(replace(run, task_weighting="uncertainty"), devices=1)
    assert uncertainty.weights() == pytest.approx({"grade": 0.5, "mask": 1.0, "heights": run.height_weight})
    nash = replace(run, task_weighting="nash", height_weight=0.0)
    assert set(balancer_of(nash, devices=1).weights()) == {"grade", "mask"}, "a weight of 0 leaves a task out"
    with pytest.raises(InputError, match="devices 1"):
        balancer_of(nash, devices=2)
    with pytest.raises(InputError, match="16-mixed"):
        balancer_of(replace(nash, loop=replace(nash.loop, precision="16-mixed")), devices=1)
