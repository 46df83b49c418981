"""All that is known of a dataset, in one record each: folders, channels, sizes and the paper's settings for it.

Nothing here imports torch. Source: docs/method.md sections 1, 2, 4, 5 and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOISE_TYPES = ("clean", "02", "08", "DE", "given")
# The paper's for one kind of noise; keys are --noise_type.
_BY_NOISE = Mapping[str, float]


@dataclass(frozen=True)
class Layout:
    """Names of a folder dataset's folders; the defaults are Kvasir's, which any dataset of your own shares."""

    images: str = "images"
    images_test: str = "images_test"
    segments: str = "images_SLIC"
    masks: str = "masks"
    masks_test: str = "masks_test"
    shrunk: str = "masks_200_0.2_0.05_0.2_mask_channel0"
    expanded: str = "masks_200_0.8_0.05_0.2_mask_channel0"
    dilated_eroded: str = "masks_DE"

    def training_masks(self, noise_type: str) -> str:
        """The folder of the training masks: 02 is S_R, 08 is S_E, DE is S_DE (docs/method.md section 6)."""
        return {"02": self.shrunk, "08": self.expanded, "DE": self.dilated_eroded}.get(noise_type, self.masks)


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before it is read; the defaults are those of any folder of your own."""

    layout: Layout = Layout()
    channels: int | None = None  # to read images with; None: as stored
    image_size: int = 256  # the paper's training size
    tau: _BY_NOISE = field(default_factory=dict)
    ratecp: _BY_NOISE = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # other fields of utils.method.settings

    def defaults(self, noise_type: str | None) -> dict[str, Any]:
        """The fields of `utils.method.settings` that this dataset changes, for masks of ``noise_type``."""
        own = {"ratecp": self.ratecp[noise_type]} if noise_type and noise_type in self.ratecp else {}
        return {**self.settings, **own}


# Keys in lower case: names are matched without regard to case.
FOLDERS = {
    "kvasir": Dataset(tau={"02": 0.05, "08": 0.05, "DE": 0.05}),
    "shenzhen": Dataset(
        layout=Layout(
            images="img",
            images_test="test_img",
            masks="mask",
            masks_test="test_mask",
            shrunk="mask_200_0.2_0.05_0.2",
            expanded="mask_200_0.8_0.05_0.2",
            dilated_eroded="mask_DE",
        ),
        tau={"02": 0.17, "08": 0.17, "DE": 0.17},
        ratecp={"08": 0.1},
    ),
    "busuc": Dataset(
        layout=Layout(shrunk="masks_200_0.2_0.05_0.2", expanded="masks_200_0.8_0.05_0.2"),
        channels=3,  # its scans may be stored in grey or in colour
        tau={"02": 0.062, "08": 0.08, "DE": 0.045},
        ratecp={"08": 0.1},
        settings={"jitter": 0.05},
    ),
}
# The sets with several raters: their masks are as given, whoever is trained on.
LIDC = Dataset(
    layout=Layout(segments="lidc_slic"),
    channels=1,
    image_size=128,
    tau={"given": 0.003},
    settings={"consistency": 0.9, "jitter": 0.05},
)
MMIS = Dataset(
    layout=Layout(images="training_2d", segments="train_2D_slic"),
    channels=3,
    image_size=128,
    tau={"given": 0.008},
    settings={"weight_decay_rate": 5, "jitter": 0.01, "max_rotation": 20.0, "noise_sigma": 0.1},
)


def folder_dataset(name: str) -> Dataset:
    """What is known of the folder dataset ``name``, whatever its case; the defaults for one of your own."""
    return FOLDERS.get(name.lower(), Dataset())
