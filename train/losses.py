"""The losses of the method and its alternatives. Every function returns a scalar mean unless said otherwise.

Sources: Adaptive Wing, masked smooth-L1, Chamfer, focal, two-term Dice: thesis 3.2.3.1 and 3.3; focal Tversky and
Unified Focal: thesis 5.1-5.4, after Yeung et al. 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_wing(
    predicted: Tensor, target: Tensor, *, omega: float = 10.0, theta: float = 0.5, epsilon: float = 3.0,
    alpha: float = 2.1, weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Adaptive Wing loss of heatmaps in 0..1 of any equal shape; ``weight`` scales each voxel before the mean.

    The constants A and C make value and slope continuous where the absolute error is ``theta``.
    """
    error = (target - predicted).abs()
    power = alpha - target
    ratio = (theta / epsilon) ** power
    A = omega / (1 + ratio) * power * (theta / epsilon) ** (power - 1) / epsilon
    C = theta * A - omega * torch.log1p(ratio)
    # The power's slope at zero error is finite (power > 1), but autograd needs a base above zero to see it.
    curved = omega * torch.log1p((error.clamp_min(1e-12) / epsilon) ** power)
    loss = torch.where(error < theta, curved, A * error - C)
    return (loss if weight is None else loss * weight).mean()


def masked_smooth_l1(predicted: Tensor, target: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """Smooth-L1 of offsets (n, 3, z, y, x) over the voxels of ``mask`` (n, 1, z, y, x): summed over the three
    components, averaged over the mask's voxels; zero (with a graph) when the mask is empty."""
    mask = mask.to(predicted.dtype)
    loss = F.smooth_l1_loss(predicted, target, beta=beta, reduction="none").sum(dim=1, keepdim=True)
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def chamfer_distance(candidates: Tensor, centres: Tensor) -> Tensor:
    """Squared Chamfer distance, both directions, between points (m, 3) and (k, 3); zero when either set is empty."""
    if len(candidates) == 0 or len(centres) == 0:
        return candidates.sum() * 0
    squared = ((candidates[:, None] - centres[None]) ** 2).sum(dim=-1)
    return squared.min(dim=1).values.mean() + squared.min(dim=0).values.mean()


def vote_candidates(heatmap: Tensor, offsets: Tensor, *, heatmap_threshold: float, vote_threshold: float) -> Tensor:
    """Candidate centres (m, 3), voxels z, y, x, of one sample: where the vote map exceeds ``vote_threshold``.

    ``heatmap`` is (z, y, x), ``offsets`` (3, z, y, x). The vote map itself is a histogram and has no gradient, so a
    candidate is the mean of the votes that made its voxel, which has: the gradient reaches the offsets.
    """
    foreground = (heatmap > heatmap_threshold).nonzero()
    z, y, x = foreground.unbind(dim=1)
    votes = foreground + offsets[:, z, y, x].T
    weights = heatmap[z, y, x]
    shape = torch.tensor(heatmap.shape, device=heatmap.device)
    voxel = torch.floor(votes.detach() + 0.5).long()
    inside = ((voxel >= 0) & (voxel < shape)).all(dim=1)
    votes, weights, voxel = votes[inside], weights[inside], voxel[inside]
    flat = (voxel[:, 0] * shape[1] + voxel[:, 1]) * shape[2] + voxel[:, 2]
    _, where = torch.unique(flat, return_inverse=True)
    count = int(where.max()) + 1 if len(where) else 0
    height = torch.zeros(count, dtype=weights.dtype, device=heatmap.device).index_add(0, where, weights)
    total = torch.zeros(count, 3, dtype=votes.dtype, device=heatmap.device).index_add(
        0, where, votes * weights[:, None]
    )
    return (total / height.clamp_min(1e-6)[:, None])[height > vote_threshold]


def cross_entropy(logits: Tensor, grades: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy of grade logits (n, c) and grades (n,); entries of -1 (no grade known) are left out.

    ``class_weights`` are not used: see ``weighted_cross_entropy``.
    """
    known = grades >= 0
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known], grades[known])


def weighted_cross_entropy(logits: Tensor, grades: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Mean of each known grade's cross entropy times its class's weight; grades of -1 are left out.

    It is divided by the number of samples and not by the sum of their weights, as torch's own ``weight`` would do: with
    one sample in a batch that quotient knows no weights.
    """
    known = grades >= 0
    if not known.any():
        return logits.sum() * 0
    loss = F.cross_entropy(logits[known], grades[known], reduction="none")
    return (loss if class_weights is None else loss * class_weights[grades[known]]).mean()


def focal(logits: Tensor, grades: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """Focal loss: mean of -alpha_c (1 - p)^gamma log p of the true class; grades of -1 are left out."""
    known = grades >= 0
    if not known.any():
        return logits.sum() * 0
    log_p = F.log_softmax(logits[known], dim=1).gather(1, grades[known, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    return (loss if class_weights is None else loss * class_weights[grades[known]]).mean()


def focal_unweighted(logits: Tensor, grades: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Focal loss without alpha: ``class_weights`` are not used."""
    return focal(logits, grades)


def unified_focal_grades(
    logits: Tensor, grades: Tensor, *, delta: float = 0.6, gamma: float = 0.5, balance: float = 0.5,
    class_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Asymmetric Unified Focal loss (see ``unified_focal``) of grades instead of voxels; grade 0 is the background.

    The focal exponent suppresses well-known grade 0 only, the Tversky exponent enhances the other grades only. The
    Tversky index of a grade is one over the batch; grades that are not in it have none. ``class_weights`` are not
    used: ``delta`` is the loss's own.
    """
    known = grades >= 0
    if not known.any():
        return logits.sum() * 0
    probability = torch.softmax(logits[known], dim=1)
    target = F.one_hot(grades[known], logits.shape[1]).to(probability.dtype)
    p = (probability * target).sum(dim=1).clamp_min(1e-7)
    suppressed = torch.where(grades[known] == 0, (1 - delta) * (1 - p).clamp_min(1e-7) ** gamma, delta)
    overlap, of_p, of_t = (probability * target).sum(dim=0), probability.sum(dim=0), target.sum(dim=0)
    index = overlap / (overlap + delta * (of_t - overlap) + (1 - delta) * (of_p - overlap))
    missed = (1 - index).clamp_min(1e-7)
    tversky = torch.cat([missed[:1], missed[1:] ** (1 - gamma)])[of_t > 0].mean()
    return balance * -(suppressed * torch.log(p)).mean() + (1 - balance) * tversky


def inverse_frequency(counts: Tensor) -> Tensor:
    """Class weights from class counts: inverse frequencies scaled to sum to 1 (thesis: normalised alpha_c)."""
    inverse = 1.0 / counts.clamp_min(1).to(torch.float32)
    return inverse / inverse.sum()


def weights_of_mean_one(counts: Tensor) -> Tensor:
    """Class weights from class counts: inverse frequencies whose mean over samples as frequent as the counts is 1."""
    weights = inverse_frequency(counts)
    return weights * counts.sum() / (weights * counts).sum()


def _sums(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap and the two totals, (n, k) each, of masks (n, k, z, y, x)."""
    return (
        (probability * target).sum(dim=(2, 3, 4)), probability.sum(dim=(2, 3, 4)), target.sum(dim=(2, 3, 4))
    )  # fmt: skip


def two_term_dice(probability: Tensor, target: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """1 minus the mean of the foreground's and the background's soft Dice; masks (n, k, z, y, x) in 0..1."""
    terms = []
    for p, t in ((probability, target), (1 - probability, 1 - target)):
        overlap, of_p, of_t = _sums(p, t)
        terms.append((2 * overlap + smooth) / (of_p + of_t + smooth))
    return 1 - 0.5 * (terms[0] + terms[1]).mean()


def tversky_index(probability: Tensor, target: Tensor, *, delta: float = 0.6, smooth: float = 1e-5) -> Tensor:
    """Tversky index (n, k): overlap over itself + delta * missed + (1 - delta) * false."""
    overlap, of_p, of_t = _sums(probability, target)
    return (overlap + smooth) / (overlap + delta * (of_t - overlap) + (1 - delta) * (of_p - overlap) + smooth)


def focal_tversky(probability: Tensor, target: Tensor, *, delta: float = 0.7, gamma: float = 0.75) -> Tensor:
    """Mean of (1 - Tversky index)^gamma of the foreground (Abraham and Khan 2019)."""
    return (1 - tversky_index(probability, target, delta=delta)).clamp_min(1e-7).pow(gamma).mean()


def unified_focal(
    probability: Tensor, target: Tensor, *, delta: float = 0.6, gamma: float = 0.5, balance: float = 0.5
) -> Tensor:
    """Asymmetric Unified Focal loss: ``balance`` between modified focal and modified focal Tversky (Yeung 2022).

    The focal exponent suppresses the background only, the Tversky exponent enhances the foreground only.
    """
    p = probability.clamp(1e-7, 1 - 1e-7)
    positive = -delta * target * torch.log(p)
    negative = -(1 - delta) * (1 - target) * p**gamma * torch.log(1 - p)
    modified_focal = (positive + negative).mean()
    foreground = (1 - tversky_index(probability, target, delta=delta)).clamp_min(1e-7).pow(1 - gamma)
    background = 1 - tversky_index(1 - probability, 1 - target, delta=delta)
    return balance * modified_focal + (1 - balance) * 0.5 * (foreground + background).mean()


GradeLoss = Callable[..., Tensor]
"""Takes logits (n, 4), grades (n,) and ``class_weights``."""
MaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes probabilities and targets, both (n, k, z, y, x)."""
GRADE_LOSSES: Mapping[str, GradeLoss] = {
    "cross_entropy": cross_entropy,
    "weighted_cross_entropy": weighted_cross_entropy,
    "focal": focal,
    "focal_unweighted": focal_unweighted,
    "unified_focal": unified_focal_grades,
}
MASK_LOSSES: Mapping[str, MaskLoss] = {
    "dice": two_term_dice,
    "focal_tversky": focal_tversky,
    "unified_focal": unified_focal,
}
