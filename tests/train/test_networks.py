"""Shapes, ranges and configuration of the networks."""

import pytest
import torch

from train.networks import FracSegNet, FracSegNetConfig, FracSegNetOutputs, LocNet, LocNetConfig, UNetConfig

SMALL = UNetConfig(channels=(4, 6, 8), bottleneck=10)


@pytest.mark.parametrize(("variant", "outputs"), [("F", 2), ("H", 1)])
def test_locnet_keeps_the_input_size(variant: str, outputs: int) -> None:
    network = LocNet(LocNetConfig(SMALL, variant)).eval()
    with torch.inference_mode():
        out = network(torch.randn(2, 1, 16, 24, 32))
    assert len(out) == outputs
    assert out[0].shape == (2, 1, 16, 24, 32)
    assert (out[0] > 0).all()
    assert (out[0] < 1).all()
    if variant == "F":
        assert out[1].shape == (2, 3, 16, 24, 32)


def test_one_pooling_per_encoder_block() -> None:
    network = LocNet(LocNetConfig(UNetConfig((4, 4, 6, 6, 8), 8)))
    features = network.unet(torch.randn(1, 1, 64, 32, 32))
    assert [f.shape[2] for f in features] == [2, 4, 8, 16, 32, 64]
    assert SMALL.multiple == 8


@pytest.mark.parametrize("head", ["pooled", "spatial"])
def test_fracsegnet_outputs(head: str) -> None:
    config = FracSegNetConfig(SMALL, ("vertebra", "body"), head, crop=32)
    with torch.inference_mode():
        mask, grade, heights = FracSegNetOutputs(FracSegNet(config)).eval()(torch.randn(3, 1, 32, 32, 32))
    assert mask.shape == (3, 2, 32, 32, 32)
    assert grade.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert heights.shape == (3, 6)
    assert 10 < heights[:, :3].mean() < 40, "an untrained network should begin at an average vertebra, in mm"
    assert (heights[:, 3:] >= 0).all()


def test_fracnet_is_fracsegnet_without_masks() -> None:
    out = FracSegNet(FracSegNetConfig(SMALL, (), "pooled", heights=False, crop=32))(torch.randn(1, 1, 32, 32, 32))
    assert set(out) == {"grade"}


@pytest.mark.parametrize("config", [{"crop": 40}, {"grade_head": "other"}, {"mask_channels": ()}])
def test_configurations_that_cannot_work_are_refused(config: dict) -> None:
    with pytest.raises(ValueError, match=r"multiple|grade head"):
        FracSegNetConfig(**config)


def test_every_parameter_learns() -> None:
    network = FracSegNet(FracSegNetConfig(SMALL, crop=32))
    out = network(torch.randn(2, 1, 32, 32, 32))
    sum((value**2).mean() for value in out.values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_he_initialisation_keeps_the_variance_of_activations() -> None:
    torch.manual_seed(0)
    network = LocNet(LocNetConfig())
    weight = network.unet.encoder[1][0].weight
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (16 * 27)) ** 0.5, rel=0.05)
