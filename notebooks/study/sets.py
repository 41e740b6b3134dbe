"""The study's own data sets: importing this adds them to the core's.

"photographs" are natural pictures, patches of those among Debian's wallpapers. They are free (CC0,
CC-BY, CC-BY-SA: the two of Lomiri; GPL: those of MATE and Plasma; by whom, says
/usr/share/doc/PACKAGE/copyright), but none is part of this repository. "shifted" is MSDS1 without
its tiles: each picture is shifted by as many pixels as chance says, around its edges.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rgflow_core import datasets
from rgflow_core.datasets import SIZE, Arrays, Each
from rgflow_core.errors import UserError

# Package -> where its photographs in colour lie, and which they are; drawings are left out.
PACKAGES = {
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds/{}.jpg",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace "
        "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi "
        "free_by_Peter_Nerlich friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich "
        "life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi "
        "seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
    ),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/{}.jpg", "Kleiber_by_Lukas_Baubkus"),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature/{}.jpg",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
        "YellowFlower",
    ),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
        "BytheWater ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path "
        "summer_1am",
    ),
}
PHOTOGRAPHS = [where.format(name) for where, names in PACKAGES.values() for name in names.split()]
ROWS, COLUMNS = 16, 24  # of patches: the middle of a photograph is shrunk to 768 x 512
PATCHES = ROWS * COLUMNS  # of each photograph, in order; they do not overlap
# Of ten photographs, which are validated and tested on; no photograph is in two splits.
SPLIT = {2: "test", 5: "val", 7: "test"}


def _patches(path: Path) -> np.ndarray:
    """The patches (PATCHES, L, L, 3) of a photograph."""
    with Image.open(path) as image:
        middle = ImageOps.fit(image.convert("RGB"), (COLUMNS * SIZE, ROWS * SIZE))
    grid = np.asarray(middle).reshape(ROWS, SIZE, COLUMNS, SIZE, 3)
    return grid.swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)


def _photographs(split: str, root: Path, size: int, each: Each) -> Arrays:
    places = [[root / "photographs" / name, Path("/", name)] for name in PHOTOGRAPHS]
    found = [next(filter(Path.is_file, both), None) for both in places]
    if missing := [name for name, path in zip(PHOTOGRAPHS, found, strict=True) if path is None]:
        raise UserError(
            f"{len(missing)} of {len(found)} photographs are not here, first /{missing[0]}: install "
            f"Debian's {', '.join(PACKAGES)}, or unpack each by "
            f"`dpkg-deb -x PACKAGE.deb {root / 'photographs'}`"
        )
    own = [path for i, path in enumerate(found) if SPLIT.get(i % 10, "train") == split]
    return {"images": np.concatenate(each(_patches, own, f"cutting photographs, {split}"))}


FACTS = {"photographs": PHOTOGRAPHS, "patches": [ROWS, COLUMNS]}


def _shifted(split: str, root: Path, size: int, each: Each) -> Arrays:
    images = datasets.load_split("msds1", split, root).images.permute(0, 2, 3, 1).numpy()
    random = np.random.default_rng(datasets.SPLITS.index(split))
    offsets = random.integers(size, size=(2, len(images), 1))
    rows, columns = (np.arange(size) + offsets) % size
    picture = np.arange(len(images))[:, None, None]
    return {"images": images[picture, rows[:, :, None], columns[:, None, :]]}


def _of_shifted(root: Path) -> dict:
    return {"msds1": datasets.SOURCES["msds1"].parameters(root), "shift": "around the edges"}


datasets.SOURCES |= {
    "photographs": datasets.Source(_photographs, lambda root: FACTS, "photographs"),
    "shifted": datasets.Source(_shifted, _of_shifted, "msds1_shifted", flip=False),
}
