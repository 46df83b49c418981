"""Pictures of single images, without PyTorch and Matplotlib, which are slow to import: outlines, PNG files."""

import cv2
import numpy as np

OUTLINES = ((255, 230, 26), (0, 200, 255), (255, 80, 80), (120, 230, 90), (230, 120, 255), (255, 160, 40))


def as_png(stored: np.ndarray) -> bytes:
    """uint8 (H,W) or (H,W,3), blue first as OpenCV has it, as a PNG file's bytes."""
    return cv2.imencode(".png", stored)[1].tobytes()


def contoured(image: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """An image at its own size, uint8 (H,W,C), with the outline of each foreground class drawn on it: uint8 (H,W,3).

    classes: (H,W). Of other than 3 channels the first is shown, as grey. The lines are thicker on larger images; from
    seven classes on colours repeat.
    """
    picture = image.copy() if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    thickness = max(1, round(max(classes.shape) / 400))
    for k in range(1, num_classes):
        outlines, _ = cv2.findContours((classes == k).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, OUTLINES[(k - 1) % len(OUTLINES)], thickness)
    return picture
