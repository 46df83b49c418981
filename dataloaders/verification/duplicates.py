"""Copies among images: fingerprints of single images in, pairs of copies out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from utils.masks.geometry import resize_image

THUMBNAIL = 32  # pixels a side
# Two steps, since medical images look alike. Candidates are pairs whose 64-bit hashes differ in at most 10 bits; they
# are copies if their thumbnails correlate by at least 0.98, pixel by pixel.
# Looked at on real images: among the 498,501 pairs of Kvasir, 961 are candidates and 3 are above 0.98, each of them the
# same scene recorded twice within seconds (0.9999, 0.9999, 0.993; the next pair, the same polyp from another angle, has
# 0.966). Among the 159,895 pairs of Shenzhen, 2,668 are candidates and none is above 0.98; the most similar radiographs
# of two people reach 0.973. Among 1.8 million pairs of LIDC slices of different patients none is above 0.933. So the
# hash alone would be wrong in up to 1.7 % of all pairs, and both steps were wrong in none of 2.4 million.
# What is found, tried on 150 images each of Kvasir and Shenzhen: JPEG at quality 20, half the size, blur (2 pixels),
# noise (10 grey levels), less contrast and another brightness keep 0.997 and 4 bits; a gamma of 0.7 keeps 0.98 and 10
# bits, just within. A shift by two pixels keeps 0.957 at worst, a crop by 2 % 0.90: such copies are missed in part, and
# those that are flipped or turned altogether.
HASH_BITS = 10
CORRELATION = 0.98

_BLOCK = 4_000_000  # pairs of hashes compared at once: bounds the memory
_CHUNK = 4096  # pairs of thumbnails compared at once


class Fingerprint(NamedTuple):
    """What is kept of an image to compare it with others."""

    digest: bytes  # of its shape and pixels
    hash: int  # 64 bits: see `perceptual_hash`
    thumbnail: np.ndarray  # (32,32) uint8 grey


@dataclass(frozen=True)
class Copy:
    """Image ``index`` repeats the earlier image ``of``; correlation 1.0 for equal pixels."""

    index: int
    of: int
    correlation: float


def fingerprint(image: np.ndarray) -> Fingerprint | None:
    """The fingerprint of an image (H,W,C), or None if it is constant and so has nothing to be recognised by."""
    if image.min() == image.max():
        return None
    digest = hashlib.blake2b(repr((image.shape, image.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    small = resize_image(image, THUMBNAIL)
    weights = (0.299, 0.587, 0.114) if small.shape[2] == 3 else None  # a colour image and its grey version are copies
    thumbnail = np.rint(np.average(small, axis=-1, weights=weights)).astype(np.uint8)
    return Fingerprint(digest.digest(), perceptual_hash(thumbnail), thumbnail)


def perceptual_hash(thumbnail: np.ndarray) -> int:
    """64 bits of a (32,32) image: which of its 8x8 lowest cosine frequencies exceed their median (Zauner, 2010)."""
    frequencies = cv2.dct(thumbnail.astype(np.float32))[:8, :8].ravel()
    # The first is the mean, which says nothing of the pattern and would move the median.
    return int(np.packbits(frequencies > np.median(frequencies[1:])).view(">u8")[0])


def exact_copies(prints: Sequence[Fingerprint], parts: Sequence[str]) -> list[Copy]:
    """Images whose pixels equal those of an earlier one, at most once for each part (such as "train") that has one."""
    first: dict[bytes, dict[str, int]] = {}
    copies = []
    for index, (image, part) in enumerate(zip(prints, parts, strict=True)):
        seen = first.setdefault(image.digest, {})
        copies += [Copy(index, of, 1.0) for of in seen.values()]
        seen.setdefault(part, index)
    return copies


def near_copies(prints: Sequence[Fingerprint], parts: Sequence[str], groups: Sequence[str]) -> list[Copy]:
    """Images that are almost the same as an earlier one without being equal: for each image and each part the most
    similar one. Images of one group (a patient's slices), of which likeness is expected, are not compared.

    Memory grows with the number of images, time with its square: for 20,000 a second where few hashes are similar, half
    a minute where 1.7 % of the pairs are, as among radiographs.
    """
    first: dict[bytes, int] = {}
    for index, image in enumerate(prints):
        first.setdefault(image.digest, index)
    own = list(first.values())
    if len(own) < 2:
        return []
    thumbnails = np.stack([prints[i].thumbnail for i in own]).reshape(len(own), -1)
    hashes = np.array([prints[i].hash for i in own], np.uint64)
    kinds = np.unique([groups[i] for i in own], return_inverse=True)[1]
    best: dict[tuple[int, str], Copy] = {}
    for later, earlier in _candidates(hashes, kinds):
        correlations = _correlations(thumbnails[later], thumbnails[earlier])
        for k in np.flatnonzero(correlations >= CORRELATION):
            copy = Copy(own[later[k]], own[earlier[k]], float(correlations[k]))
            key = copy.index, parts[copy.of]
            if key not in best or copy.correlation > best[key].correlation:
                best[key] = copy
    return [best[key] for key in sorted(best)]


def _candidates(hashes: np.ndarray, kinds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (later, earlier) of pairs with similar hashes and unlike kinds, at most `_CHUNK` at a time."""
    rows = max(1, _BLOCK // len(hashes))
    for start in range(0, len(hashes), rows):
        later = np.arange(start, min(start + rows, len(hashes)))
        close = np.bitwise_count(hashes[later, None] ^ hashes[None, : later[-1]]) <= HASH_BITS
        close &= kinds[later, None] != kinds[None, : later[-1]]
        row, column = np.nonzero(np.tril(close, start - 1))
        for chunk in range(0, len(row), _CHUNK):
            yield later[row[chunk : chunk + _CHUNK]], column[chunk : chunk + _CHUNK]


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of two (N,pixels) arrays."""
    centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (first.astype(np.float32), second)]
    norms = [np.linalg.norm(rows, axis=1) for rows in centred]
    # A thumbnail may be constant although its image is not; it is then like nothing.
    return np.einsum("ij,ij->i", *centred) / np.maximum(norms[0] * norms[1], 1e-6)
