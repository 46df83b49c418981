"""How strong the edges of an image are where the contour of a mask lies."""

import cv2
import numpy as np


def edge_contrast(image: np.ndarray, label: np.ndarray) -> float:
    """The mean gradient of ``image`` along the contours of ``label``, as a multiple of that of the whole image.

    image: (H,W,C) uint8; label: (H,W), whose contours are where neighbours differ. About 1 where the contours have
    nothing to do with the image, more where they follow its edges; 1 for a label or an image without any.
    """
    grey = cv2.GaussianBlur(image.astype(np.float32).mean(axis=2), (0, 0), 1)
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    contour = np.zeros(label.shape, bool)
    for axis in (0, 1):
        differ = np.diff(label.astype(np.int64), axis=axis) != 0
        first, second = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        contour[first] |= differ
        contour[second] |= differ
    mean = float(gradient.mean())
    return float(gradient[contour].mean()) / mean if contour.any() and mean > 0 else 1.0
