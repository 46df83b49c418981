"""The plain reference that `benchmarks/speed.py` compares with: docs/method.md written down in the obvious way.

What a careful reader of the method would write first, with the library function that comes to mind for each formula:
loops over images, segments and steps, distances from scipy each time they are needed, a full sort, one image at a time
through a torch DataLoader, float32 throughout. Nothing is slow on purpose, and nothing is cached or batched by craft.
It computes the same numbers as the program (tests/test_benchmarks.py). The network is the program's own.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import convolve, distance_transform_edt
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import ColorJitter, Normalize
from torchvision.transforms.functional import to_tensor


def markov_noise(mask: np.ndarray, rng: np.random.Generator, T: int, theta1: float, theta2: float) -> np.ndarray:
    """Noisy version of a mask (H,W) of 0 and 1, uint8. Source: docs/method.md section 6."""
    mask = mask.astype(np.uint8)
    for draw in rng.random(T):
        if mask.all() or not mask.any():
            break
        # The boundary pixels are those at distance 1 from the other class.
        inside = mask == 0 if draw < theta1 else mask == 1
        rows, columns = np.nonzero(distance_transform_edt(inside) == 1)
        flips = rng.random(len(rows)) < theta2
        mask[rows[flips], columns[flips]] = 1 - mask[rows[flips], columns[flips]]
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 2**2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    return (convolve(mask.astype(float), kernel, mode="mirror") > 0.5).astype(np.uint8)


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """Distance of each pixel (H,W) to the nearest pixel of another class, capped at 10; float32.

    Source: docs/method.md section 2.
    """
    distance = np.full(label.shape, 10.0, np.float32)
    classes = np.unique(label)
    if len(classes) > 1:
        for value in classes:
            inside = label == value
            distance[inside] = np.minimum(distance_transform_edt(inside), 10)[inside]
    return distance


class NoisyMasks(Dataset):
    """Images (N,H,W,3) uint8 with labels and superpixels (N,H,W), augmented anew each time one is asked for.

    They are in memory already: reading and decoding files, which an obvious dataset does as well, is left out in the
    reference's favour. mean, std: per channel, on the [0, 1] scale. Source: docs/method.md section 5.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, segments: np.ndarray, mean, std, jitter: float):
        self.images, self.labels, self.segments = images, labels, segments
        self.normalise = Normalize(mean, std)
        self.jitter = ColorJitter(0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter)

    def __len__(self) -> int:
        return len(self.images)

    def augmented(self, index: int) -> dict[str, Tensor]:
        """One image turned, flipped, jittered and normalised, with its label and superpixels."""
        turns, flips = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)

        def moved(values: np.ndarray) -> np.ndarray:
            return np.rot90(np.fliplr(values) if flips else values, turns).copy()

        unit = to_tensor(moved(self.images[index]))
        return {
            "image": self.normalise(unit),
            "jittered": self.normalise(self.jitter(unit)),
            "label": torch.from_numpy(moved(self.labels[index])).long(),
            "segments": torch.from_numpy(moved(self.segments[index])).long(),
        }

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.augmented(index)
        return {**sample, "distance": torch.from_numpy(boundary_distance(sample["label"].numpy()))}


def select_small_loss(loss: Tensor, rate: float) -> Tensor:
    """Mask of the floor((1 - rate) N) pixels with the smallest loss, by a full sort. Source: section 1."""
    kept = math.floor((1 - rate) * loss.numel())
    mask = torch.zeros(loss.numel(), dtype=torch.bool, device=loss.device)
    mask[loss.flatten().argsort()[:kept]] = True
    return mask.view_as(loss)


def region_vote(probability: Tensor, segments: Tensor) -> Tensor:
    """Each superpixel's class, the argmax of its mean probability: (B,K,H,W), (B,H,W) -> (B,H,W). Source: section 3."""
    vote = torch.empty_like(segments)
    for i in range(len(segments)):
        for segment in segments[i].unique():
            inside = segments[i] == segment
            vote[i][inside] = probability[i][:, inside].mean(dim=1).argmax()
    return vote


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p||q) per pixel, (B,H,W)."""
    log_p, log_q = F.log_softmax(logits_p, dim=1), F.log_softmax(logits_q, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def soft_dice(probability: Tensor, label: Tensor) -> Tensor:
    """Soft Dice, the mean over samples and classes. Source: section 4."""
    target = F.one_hot(label, probability.shape[1]).movedim(-1, 1).float()
    overlap = (probability * target).sum(dim=(2, 3))
    return ((2 * overlap + 1) / (probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)).mean()


def transfer_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """L_1 or L_2 of one network on the mixed images. Source: section 4."""
    cross_entropy = (weight * F.cross_entropy(logits, label, reduction="none")).mean()
    return 0.5 * cross_entropy + 0.5 * weight.mean() * (1 - soft_dice(logits.softmax(dim=1), label))


def training_loss(
    networks: nn.ModuleList,
    batch: dict[str, Tensor],
    epoch: int,
    max_epochs: int,
    tau: float,
    ratecp: float,
    mixing: float,
    permutation: Tensor,
) -> Tensor:
    """The loss of one step, lambda = 0.5. Source: docs/method.md sections 1 to 5, in this order."""
    f1, f2 = networks
    image, jittered, label = batch["image"], batch["jittered"], batch["label"]
    o1, o2 = f1(image), f2(jittered)

    loss = F.cross_entropy(o1, label, reduction="none") + F.cross_entropy(o2, label, reduction="none")
    loss = loss + 0.5 * (kl_divergence(o1, o2) + kl_divergence(o2, o1))
    keep = select_small_loss(loss.detach(), tau * min(epoch / (0.2 * max_epochs - 1), 1))

    weight = batch["distance"].clip(1, max(11 - 10 * epoch // max_epochs, 1))
    total = (weight * loss)[keep].mean()
    if epoch < 0.3 * max_epochs:
        return total

    with torch.no_grad():
        probability = mixing * o1.softmax(dim=1) + (1 - mixing) * o2.softmax(dim=1)
        refined = torch.where(keep, label, region_vote(probability, batch["segments"]))
        mixed = [torch.empty_like(values) for values in (image, jittered, refined, weight)]
        for i, partner in enumerate(permutation.tolist()):
            inside = refined[i] != 0
            if inside.float().mean() > ratecp:
                inside = ~inside
            for result, values in zip(mixed, (image, jittered, refined, weight), strict=True):
                result[i] = torch.where(inside, values[i], values[partner])
    image, jittered, label, weight = mixed
    q1, q2 = f1(image), f2(jittered)
    agreement = 0.5 * (weight * (kl_divergence(q1, q2) + kl_divergence(q2, q1))).mean()
    return total + transfer_loss(q1, label, weight) + transfer_loss(q2, label, weight) + agreement
