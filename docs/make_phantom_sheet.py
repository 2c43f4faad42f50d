"""Contact sheet of made lesions, a row a diagnosis, a column a Fitzpatrick type: python docs/make_phantom_sheet.py"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from cbdc import make_lesions

TYPES = ("I", "II", "III", "IV", "V", "VI")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "phantom.png")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    classes = make_lesions(1, image_size=16).classes
    figure, axes = plt.subplots(len(classes), len(TYPES), figsize=(6, 7.1), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for row, name in zip(axes, classes):
        for column, (ax, skin_type) in enumerate(zip(row, TYPES)):
            seed = 1000 * arguments.seed + 100 * classes.index(name) + column
            lesions = make_lesions(1, class_prior={name: 1.0}, skin_types=column + 1, ambiguity=0, random_state=seed)
            ax.imshow(lesions.images[0])
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if name == classes[0]:
                ax.set_title(skin_type, fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=82)
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
