"""Which masks belong to which image, by their names, and what is left out, with the reason. No pixel is read."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataloaders.prepare.finding import Key, files_below, key_of, why_not, without_identifiers
from dataloaders.prepare.medical import identity_of, is_dicom
from dataloaders.prepare.settings import Settings
from utils.commands.errors import UserError, is_plain, listed

NUMBER = r"(?:[ _-]?\(?\d+\)?)?"  # of several masks of one image: x_mask, x_mask_1, x_mask (2)
OF_MASKS = re.compile(r"mask|seg|label|annot|lesion|truth|manual|contour|roi|gt", re.IGNORECASE)


class Source(NamedTuple):
    """One file of images with what belongs to it."""

    path: Path
    name: str  # below its root, as it may be shown
    stem: str  # of the files to be written
    folders: tuple[str, ...]  # below its root
    masks: tuple[Path, ...]  # none: the mask is empty
    value: int | None  # class of the foreground, where the folder says so
    patient: str  # files of one patient stay together; never shown


class Found(NamedTuple):
    """What a raw download holds."""

    sources: list[Source]
    left_out: dict[str, str]  # name to show -> reason
    settings: Settings  # with the suffix of masks, which may be guessed
    shown: dict[Path, str]  # the names of files as they may be shown
    together: str  # by what files are kept together, in words


def guess_suffix(images: Iterable[Key], masks: Iterable[Key], beside: Path | None) -> str:
    """What the names of masks have behind those of their images, where the names make it plain; a number may follow.

    beside: the folder in which masks lie among the images; None: they have their own. Raises `UserError` if nothing
    fits, or several suffixes do.
    """
    there = set(images)
    pairs: dict[str, set[Key]] = defaultdict(set)
    for folders, name in masks:
        for end in range(1, len(name) + 1):
            image, rest = (folders, name[:end]), name[end:]
            if image in there and (rest or not beside) and not rest[:1].isdigit():
                suffix = re.sub(NUMBER + "$", "", rest)
                if suffix or not rest:
                    pairs[suffix].add(image)
    if beside:  # a name of several words is no sign of a mask, unless every file is an image or its mask
        pairs = {k: those for k, those in pairs.items() if OF_MASKS.search(k) or 2 * len(those) == len(there)}
    most = max(map(len, pairs.values()), default=0)
    best = sorted(suffix for suffix, those in pairs.items() if len(those) == most)
    if len(best) == 1:
        return best[0]
    if best:
        raise UserError(f"--mask_suffix: {listed(map(repr, best))} fit the names equally well; give one of them")
    remedy = "give what masks have behind the name of their image, or --masks_root, the folder of masks"
    tops = sorted({folders[0] for folders, _ in there if folders})
    of_masks = [top for top in tops if OF_MASKS.search(top)]
    if beside and len(tops) == 2 and len(of_masks) == 1:
        (other,) = {*tops} - {*of_masks}
        places = f"--images_root {beside / other} --masks_root {beside / of_masks[0]}"
        remedy = f"{of_masks[0]} may be a folder of masks: then give {places}"
    raise UserError(f"--mask_suffix: no file is named like an image with something like _mask behind it; {remedy}")


def image_of(mask: Key, suffix: str) -> Key | None:
    """What the image of a mask is called; None if the file is not named like a mask."""
    if not suffix:
        return mask
    match = re.fullmatch(f"(.+){re.escape(suffix)}{NUMBER}", mask[1], re.DOTALL)
    return (mask[0], match[1]) if match else None


def find(
    images_root: Path,
    masks_root: Path | None,
    settings: Settings,
    images_only: bool = False,
    patient: str | None = None,
) -> Found:
    """The images below ``images_root`` with their masks, which lie among them or below ``masks_root``.

    images_only: masks are left out. patient: a regular expression that finds the patient in an image's path below the
    root: its groups, or all that it matches. Raises `UserError` if there is nothing to prepare, for two images of one
    name, where a suffix must be given, and where ``patient`` or a folder that a flag names is not found.
    """
    roots = dict.fromkeys(files_below(images_root, masks_root), images_root)
    if masks_root:
        roots |= dict.fromkeys(files_below(masks_root), masks_root)
    reasons = {path: reason for path in roots if (reason := why_not(path))}
    keys = {path: key_of(path, root) for path, root in roots.items() if path not in reasons}
    identities = {path: identity_of(path) for path in keys if is_dicom(path)}
    cleaned = without_identifiers(list(identities.values()))
    shown = {path: _printable(cleaned(path.relative_to(root).as_posix())) for path, root in roots.items()}

    images = {path: key for path, key in keys.items() if roots[path] == images_root}
    masks = images if masks_root is None else {path: key for path, key in keys.items() if path not in images}
    if settings.mask_suffix is None and not images_only:
        beside = images_root if masks_root is None else None
        settings = replace(settings, mask_suffix=guess_suffix(images.values(), masks.values(), beside))
    suffix = settings.mask_suffix or ""
    owners = {path: image_of(key, suffix) for path, key in masks.items()}
    if masks_root is None:
        owners = {path: owner for path, owner in owners.items() if owner and suffix}
        images = {path: key for path, key in images.items() if path not in owners}
    _check_images(images, shown, images_root)

    masks_of = defaultdict(list)
    there = set(images.values())
    for path, owner in owners.items():
        if images_only:
            reasons[path] = "a mask; --images_only takes images alone"
        elif owner in there:
            masks_of[owner].append(path)
        else:
            reasons[path] = (
                f"no image of the name {cleaned(owner[1])}" if owner else f"its name does not end in {suffix}"
            )
    if not images_only:
        _check_folders(settings, images)
        normal = {name.lower() for name in settings.normal}
        bare = [path for path, key in images.items() if not (masks_of[key] or normal & set(map(str.lower, key[0])))]
        reasons |= dict.fromkeys(bare, f"no mask of the name {'...' + suffix if suffix else 'of the image'}")
    patients = {path: identities[path].patient if path in identities else str(path) for path in images}
    if patient is not None:
        patients = _patients(patient, [path for path in images if path not in reasons], images_root, shown)
    sources = [
        Source(
            path,
            shown[path],
            _printable(cleaned("_".join((*folders, name)))),
            folders,
            tuple(sorted(masks_of[folders, name])),
            _class_of(folders, settings),
            patients[path],
        )
        for path, (folders, name) in images.items()
        if path not in reasons
    ]
    _check_stems(sources)
    together = (
        "by patient (--patient)" if patient is not None else "by patient (DICOM) or file" if identities else "by file"
    )
    left_out = {shown[path]: reason for path, reason in sorted(reasons.items())}
    return Found(sources, left_out, settings, shown, together)


def _printable(name: str) -> str:
    return name if is_plain(name) else ascii(name)[1:-1]


def _check_images(images: Mapping[Path, Key], shown: Mapping[Path, str], root: Path) -> None:
    if not images:
        raise UserError(f"{root}: no image in it that is no mask; scripts/prepare_data.py --help says what is read")
    by_key: dict[Key, Path] = {}
    for path, key in images.items():
        if key in by_key:
            raise UserError(
                f"{root}: {shown[by_key[key]]} and {shown[path]} have the same name before the suffix; rename one, or "
                "if one is a mask, give --masks_root, a folder of masks alone"
            )
        by_key[key] = path


def _check_folders(settings: Settings, images: Mapping[Path, Key]) -> None:
    """Raise `UserError` if a flag names a folder that no image lies in."""
    there = {folder.lower(): folder for folders, _ in images.values() for folder in folders}
    named = {name: "class_of" for name in settings.class_of}
    if settings.normal != Settings.normal:
        named |= {name: "normal" for name in settings.normal}
    for name, flag in named.items():
        if name.lower() not in there:
            found = listed(sorted(there.values()), 10) or "none"
            raise UserError(f"--{flag} {name}: no images in a folder of that name; folders with images: {found}")


def _class_of(folders: tuple[str, ...], settings: Settings) -> int | None:
    named = [name for name in settings.class_of if name.lower() in map(str.lower, folders)]
    values = {settings.class_of[name] for name in named}
    if len(values) > 1:
        raise UserError(
            f"--class_of: {' and '.join(named)} lie in each other and have different classes; name one of them"
        )
    return values.pop() if values else None


def _patients(pattern: str, images: list[Path], root: Path, shown: Mapping[Path, str]) -> dict[Path, str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--patient {pattern!r}: not a regular expression ({error})") from error
    matches = {path: expression.search(path.relative_to(root).as_posix()) for path in images}
    lacking = [shown[path] for path, match in matches.items() if match is None]
    if lacking:
        raise UserError(
            f"--patient {pattern!r}: not in the path of {len(lacking)} of {len(images)} images: {listed(lacking)}; "
            "give an expression that every path has, such as 'p[0-9]+'"
        )
    return {path: "\0".join(filter(None, match.groups())) or match[0] for path, match in matches.items() if match}


def _check_stems(sources: list[Source]) -> None:
    by_stem: dict[str, Source] = {}
    for source in sources:
        first = by_stem.setdefault(source.stem, source)
        if first is not source:
            raise UserError(
                f"{first.name} and {source.name}: both would be written as {source.stem}; rename one of them"
            )
