"""Networks small enough to train on nothing, as run folders."""

from pathlib import Path

import torch

from train import config
from train.config import FracSegNetRun, LevelNetRun, LocNetRun
from train.loop import save_atomically
from train.networks import FracSegNetConfig, LevelNetConfig, LocNetConfig, UNetConfig

TINY = UNetConfig((4, 6, 8), 8)
LOC = LocNetRun(LocNetConfig(TINY), crop_shapes=((16, 16, 16), (24, 16, 16)))
FRAC = FracSegNetRun(FracSegNetConfig(TINY, crop=16))
LEVEL = LevelNetRun(LevelNetConfig(4, (4, 6), 4, 8, crop_zyx=(16, 8, 8)))


def trained(run, network: torch.nn.Module, folder: Path) -> Path:
    """A run folder as training leaves it, with weights far from their initial values."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    config.save(run, folder / "config.json")
    save_atomically({"network": network.state_dict(), "step": 12, "metrics": {"score": 0.5}}, folder / "best.ckpt")
    return folder
