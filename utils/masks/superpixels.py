"""Superpixels: arrays in, arrays out."""

import numpy as np
from skimage.segmentation import slic


def slic_segments(
    image: np.ndarray, n_segments: int = 1024, compactness: float = 10.0, sigma: float = 1.0
) -> np.ndarray:
    """SLIC superpixels of one image: uint8 (H,W,C) -> int32 (H,W) of connected segments, ids 0, 1, 2, ...

    n_segments >= 1 is a target: the grid it starts from and the merging of small pieces make it a few per cent fewer
    on photographs, and an image of fewer pixels than n_segments gets a segment a pixel. compactness > 0 weighs
    closeness in pixels against closeness in colour; sigma >= 0 is the Gaussian smoothing beforehand, in pixels.
    scikit-image stretches each image to its own full range first; a constant image is cut into a regular grid. Three
    channels are taken as RGB; of other numbers than one and three all count alike.
    Source: docs/method.md section 3; Achanta et al., SLIC, TPAMI 2012.
    """
    # Colours are compared in Lab, where lightness runs to 100. A single channel would run to 1, and compactness 10
    # would leave a bare grid; as three equal channels, grey is compared on the same scale as colour.
    channels = image.shape[2]
    if channels == 1:
        image = np.broadcast_to(image, (*image.shape[:2], 3))
    elif channels != 3:
        # The same scale for channels that are no colours: 100 is the full range, and a distance its root mean square.
        compactness = compactness / 100 * channels**0.5
    segments = slic(image, n_segments=n_segments, compactness=compactness, sigma=sigma, start_label=0, channel_axis=-1)
    return segments.astype(np.int32)
