"""What scores are called in tables, and what stands below them; imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from utils.commands.errors import UserError, counted
from utils.engine.scores import FORMER

SCORES = {  # what each score is called in a table
    "dice": "Dice",
    "dice_majority": "Dice, majority vote",
    "soft_dice": "soft Dice, mean of the raters",
    FORMER: "Dice, two empty masks count 1",
    "iou": "IoU",
    "ged": "energy distance (GED)",
    "hd95": "HD95, px",
    "assd": "ASSD, px",
    "nsd": "surface Dice (2 px)",
}


def titles_of(names: Mapping[str, object], class_names: Sequence[str] = ()) -> dict[str, str]:
    """What each score of ``names`` is called, in the order of a table; class_names: of the classes 1..K-1, if any."""
    labels = class_labels(names, class_names)
    single = {f"dice_class{k}": f"Dice, {label}" for k, label in labels.items() if len(labels) > 1}
    single |= {name: f"Dice, rater {name[10:]}" for name in names if name.startswith("dice_rater")}
    of_raters = {"dice": "Dice, mean of the raters", "iou": "IoU, mean of the raters"} if "dice_rater1" in names else {}
    of_classes = {"dice": "Dice, mean of the classes"} if len(labels) > 1 and not of_raters else {}
    return {n: title for n, title in (single | SCORES | of_raters | of_classes).items() if n in names}


def class_labels(names: Mapping[str, object], class_names: Sequence[str] = ()) -> dict[int, str]:
    """What each class of the scores ``names`` is called, by its number."""
    classes = sorted(int(n.removeprefix("dice_class")) for n in names if n.startswith("dice_class"))
    return {k: class_names[k - 1] if class_names else f"class {k}" for k in classes}


def check_class_names(class_names: Sequence[str], num_classes: int) -> None:
    """Raises `UserError` unless there is none, or one for each of the classes 1..num_classes-1."""
    if class_names and len(class_names) != num_classes - 1:
        raise UserError(
            f"--class_names {' '.join(class_names)}: {len(class_names)} names, but there are {num_classes - 1} classes "
            f"beside the background (--num_classes {num_classes}); name each, from class 1 on"
        )


def foot(means: Mapping[str, float | None], cases: Mapping[str, int], class_names: Sequence[str] = ()) -> Iterator[str]:
    """The lines below a table: what counts as the worst value, and the references that lack a class."""
    if "hd95" in means:
        yield "  a class that the prediction alone lacks counts 0, in HD95 and ASSD the image's diagonal;"
        yield "  distances are in pixels of the masks"
    for k, label in class_labels(means, class_names).items():
        share, pixels = means[f"specificity_class{k}"], means[f"false_pixels_class{k}"]
        if share is not None and pixels is not None:
            references = counted(cases[f"specificity_class{k}"], "reference")
            yield (
                f"  {references} without {label}, not in its scores: {share:.1%} of "
                f"their predictions lack it too (specificity), {pixels:.1f} false pixels in the mean"
            )
