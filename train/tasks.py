"""The two things that are trained: what a sample is, what is lost, and how good the network has become."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from runtime.intensity import normalise
from runtime.voting import density_peaks, refine_peaks, vote_map
from train import losses
from train.config import FracSegNetRun, LevelNetRun, LocNetRun, Run
from train.distillation import Teacher
from train.level_task import LevelNetTask
from train.metrics import f1_scores, match_centres, ranked_probability_score
from train.networks import GRADES, HEIGHT_UNIT_MM, FracSegNet, LocNet
from train.sources import Source
from train.targets import gaussian_heatmap, offset_map

Batch = dict[str, Any]


class Task(Protocol):
    """What the loop needs to know about a network in training."""

    name: str

    def network(self) -> nn.Module:
        """A new, initialised network."""
        ...

    def batch(self, source: Source, seed: tuple[int, ...], size: int) -> Batch:
        """``size`` samples, determined by the seed alone."""
        ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; ``"loss"`` is what is minimised."""
        ...

    def metrics(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures by name; ``"score"`` is what the best checkpoint is chosen by (higher is better)."""
        ...


class LocNetTask:
    """Find vertebral centres in crops."""

    name = "locnet"

    def __init__(self, run: LocNetRun) -> None:
        self.run = run

    def network(self) -> LocNet:
        """A new, initialised network; with a teacher, begun with its weights."""
        network = LocNet(self.run.network)
        if self._teacher is not None:
            self._teacher.begin(network)
        return network

    @cached_property
    def _teacher(self) -> Teacher | None:
        """Opened when first asked for: batches are made without it, in other processes and without the data for it."""
        return Teacher(self.run) if self.run.distillation.teacher else None

    def batch(self, source: Source, seed: tuple[int, ...], size: int) -> Batch:
        """Crops of one size: image, heatmap (n, 1, z, y, x), offsets (n, 3, z, y, x), and a list of centres (k, 3)."""
        rng = np.random.default_rng(seed)
        shape = self.run.crop_shapes[rng.integers(len(self.run.crop_shapes))]
        images, heatmaps, offsets, centres = [], [], [], []
        for _ in range(size):
            hu, points = source.localisation(rng, shape, self.run)
            images.append(normalise(hu, self.run.intensity))
            heatmaps.append(gaussian_heatmap(points, shape, sigma_voxels=self.run.sigma_voxels))
            offsets.append(offset_map(points, shape))
            centres.append(torch.from_numpy(np.asarray(points, np.float32).reshape(-1, 3)))
        return {
            "image": torch.from_numpy(np.stack(images)[:, None]),
            "heatmap": torch.from_numpy(np.stack(heatmaps)[:, None]),
            "offsets": torch.from_numpy(np.stack(offsets)),
            "centres": centres,
        }

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """w_H L_H + w_O L_O + w_CD L_CD (thesis 3.2.3.1), and what sets it apart from its teacher, if it has one."""
        run, image, teacher = self.run, batch["image"], self._teacher
        said, features = (network(image), None) if teacher is None else network(image, with_features=True)
        heatmap, *offsets = said
        weight = 1 + run.foreground_weight * batch["heatmap"] if run.foreground_weight else None
        parts = {"heatmap": losses.adaptive_wing(heatmap, batch["heatmap"], weight=weight)}
        total = run.heatmap_weight * parts["heatmap"]
        if offsets:
            mask = heatmap.detach() > run.heatmap_threshold
            if run.offset_mask == "either":
                mask = mask | (batch["heatmap"] > 0.1)
            has_centre = torch.tensor([len(c) > 0 for c in batch["centres"]], device=mask.device)
            mask = mask & has_centre[:, None, None, None, None]
            parts["offsets"] = losses.masked_smooth_l1(offsets[0], batch["offsets"], mask)
            parts["chamfer"] = self._chamfer(heatmap, offsets[0], batch["centres"])
            total = total + run.offset_weight * parts["offsets"] + run.chamfer_weight * parts["chamfer"]
        if teacher is not None and features is not None:
            parts |= teacher.losses(image, (heatmap, offsets[0]), features)
            total = total + parts["heat_apart"] + parts["offsets_apart"] + parts["features_apart"]
        return {"loss": total, **parts}

    def _chamfer(self, heatmap: Tensor, offsets: Tensor, centres: list[Tensor]) -> Tensor:
        run = self.run
        terms = [
            losses.chamfer_distance(
                losses.vote_candidates(
                    heatmap[i, 0].detach(), offsets[i], heatmap_threshold=run.heatmap_threshold,
                    vote_threshold=run.vote_threshold,
                ),
                centres[i].to(offsets.device),
            )
            for i in range(len(centres))
        ]  # fmt: skip
        return torch.stack(terms).mean()

    def metrics(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Recall within 10 mm, false centres per crop and mean error (mm), with votes, peaks and refinement."""
        found = true = predicted = 0
        errors: list[float] = []
        for batch in batches:
            heatmap, *offsets = (o.float().cpu().numpy() for o in network(batch["image"]))
            for i, centres in enumerate(batch["centres"]):
                peaks = self._peaks(heatmap[i, 0], offsets[0][i] if offsets else None)
                pairs = match_centres(peaks * self.run.spacing_mm, centres.numpy() * self.run.spacing_mm, limit_mm=10.0)
                errors += [distance for _, _, distance in pairs]
                found, true, predicted = found + len(pairs), true + len(centres), predicted + len(peaks)
        recall, precision = found / max(true, 1), found / max(predicted, 1)
        error = float(np.mean(errors)) if errors else 10.0
        return {
            "score": 2 * recall * precision / max(recall + precision, 1e-9) - 0.02 * error,
            "recall": recall, "precision": precision, "error_mm": error,
        }  # fmt: skip

    def _peaks(self, heatmap: np.ndarray, offsets: np.ndarray | None) -> np.ndarray:
        if offsets is None:
            return density_peaks(heatmap, threshold=0.7, separation_voxels=5.0).astype(float)
        votes = vote_map(heatmap, offsets, threshold=self.run.heatmap_threshold)
        separation = max(10.0 / self.run.spacing_mm, 3.0)
        return refine_peaks(votes, density_peaks(votes, threshold=1.0, separation_voxels=separation), radius_voxels=2.0)


class FracSegNetTask:
    """Segment and grade the vertebra in the middle of a crop."""

    name = "fracsegnet"

    def __init__(self, run: FracSegNetRun) -> None:
        self.run = run

    def network(self) -> FracSegNet:
        """A new, initialised network."""
        return FracSegNet(self.run.network)

    def batch(self, source: Source, seed: tuple[int, ...], size: int) -> Batch:
        """Crops: image (n, 1, z, y, x), mask (n, k, z, y, x), mask_known (n, k), grade (n,), heights (n, 6).

        An unknown grade is -1, an unknown height nan.
        """
        rng = np.random.default_rng(seed)
        samples = [source.vertebra(rng, self.run) for _ in range(size)]
        return {
            "image": torch.from_numpy(np.stack([normalise(s.hu, self.run.intensity) for s in samples])[:, None]),
            "mask": torch.from_numpy(np.stack([s.masks for s in samples]).astype(np.float32)),
            "mask_known": torch.from_numpy(np.stack([s.masks_known for s in samples])),
            "grade": torch.tensor([s.grade for s in samples]),
            "heights": torch.from_numpy(np.stack([s.heights for s in samples]).astype(np.float32)),
        }

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted sum of mask, grade and height losses; what a sample doesn't know costs nothing."""
        run, out = self.run, network(batch["image"])
        weights = self._class_weights.to(batch["image"].device)
        parts = {"grade": losses.GRADE_LOSSES[run.grade_loss](out["grade"], batch["grade"], class_weights=weights)}
        total = run.grade_weight * parts["grade"]
        if "mask" in out:
            known = batch["mask_known"].any(dim=1)
            parts["mask"] = self._mask_loss(out["mask"][known], batch["mask"][known], batch["mask_known"][known])
            total = total + run.mask_weight * parts["mask"]
        if "heights" in out:
            target = _scaled(batch["heights"])
            known_height = target.isfinite()
            error = nn.functional.smooth_l1_loss(out["heights"], target.nan_to_num(0.0), beta=0.05, reduction="none")
            parts["heights"] = (error * known_height).sum() / known_height.sum().clamp_min(1)
            total = total + run.height_weight * parts["heights"]
        return {"loss": total, **parts}

    @cached_property
    def _class_weights(self) -> Tensor:
        """Of the grade loss, (4,): of mean 1 for the cross entropy, of sum 1 for the thesis's focal loss."""
        counts = torch.tensor(self.run.class_counts)
        weighted = self.run.grade_loss == "weighted_cross_entropy"
        return losses.weights_of_mean_one(counts) if weighted else losses.inverse_frequency(counts)

    def _mask_loss(self, logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Mean over samples (n, k, z, y, x), each of which counts the channels that are known of it (n, k) alike."""
        if len(logits) == 0:
            return logits.sum() * 0
        of_each = [self._mask_loss_of(logits[i : i + 1, k], target[i : i + 1, k]) for i, k in enumerate(known)]
        return torch.stack(of_each).mean()

    def _mask_loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = losses.MASK_LOSSES[self.run.mask_loss](torch.sigmoid(logits), target)
        if self.run.mask_entropy_weight:  # Dice alone gives empty or tiny masks hardly any gradient
            entropy = nn.functional.binary_cross_entropy_with_logits(logits, target)
            loss = loss + self.run.mask_entropy_weight * entropy
        return loss

    def metrics(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Dice per mask channel, macro F1 and ranked probability score of grades, errors of heights (mm) and losses.

        The score is Dice and 1 - the ranked probability score: what some tens of samples say of a macro F1 is chance.
        """
        dice: list[np.ndarray] = []
        true: list[int] = []
        probabilities: list[np.ndarray] = []
        errors: list[np.ndarray] = []
        for batch in batches:
            out = network(batch["image"])
            true += batch["grade"].tolist()
            probabilities.append(torch.softmax(out["grade"], dim=1).cpu().numpy())
            if "mask" in out:
                mask, target = (out["mask"] > 0).float().cpu(), batch["mask"].cpu()
                overlap = 2 * (mask * target).sum(dim=(2, 3, 4)) / (mask + target).sum(dim=(2, 3, 4)).clamp_min(1)
                dice.append(overlap.where(batch["mask_known"].cpu(), torch.nan).numpy())
            if "heights" in out:
                errors.append((out["heights"].cpu() - _scaled(batch["heights"].cpu())).abs().numpy())
        result = {f"dice_{name}": float(np.nanmean(np.concatenate(dice)[:, k]))
                  for k, name in enumerate(self.run.network.mask_channels)}  # fmt: skip
        grades, table = np.array(true), np.concatenate(probabilities)
        known = grades >= 0
        if known.any():
            f1 = f1_scores(grades[known].tolist(), table[known].argmax(axis=1).tolist(), classes=GRADES)
            result["grade_macro_f1"] = float(np.nanmean(f1))
            result["grade_rps"] = ranked_probability_score(grades[known], table[known])
        if errors:
            every = np.concatenate(errors)
            result["height_error_mm"] = float(np.nanmean(every[:, :3])) * HEIGHT_UNIT_MM
            result["height_loss_error"] = float(np.nanmean(every[:, 3:]))
        terms = [1 - result.get("grade_rps", np.nan), result.get("dice_vertebra", np.nan)]
        result["score"] = float(np.nansum(terms)) if np.isfinite(terms).any() else float("nan")
        return result


def _scaled(heights: Tensor) -> Tensor:
    return torch.cat([heights[:, :3] / HEIGHT_UNIT_MM, heights[:, 3:]], dim=1)


def task_of(run: Run) -> Task:
    """The task that a run's configuration describes."""
    if isinstance(run, LocNetRun):
        return LocNetTask(run)
    return LevelNetTask(run) if isinstance(run, LevelNetRun) else FracSegNetTask(run)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; lists (of centres) stay where they are."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
