"""Contact sheet of the perturbations at severities 1, 3 and 5: python docs/make_perturb_sheet.py"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from cbdc import make_lesions
from cbdc.perturb import PERTURBATIONS, perturb

SHOWN = (1, 3, 5)
N_BLOCKS = 2  # perturbations beside each other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "perturb.png")
    parser.add_argument("--seed", type=int, default=9)
    arguments = parser.parse_args()
    lesions = make_lesions(24, skin_types=[1, 2, 3, 4, 5], random_state=arguments.seed).images
    names = list(PERTURBATIONS)
    n_rows = -(-len(names) // N_BLOCKS)
    figure, axes = plt.subplots(n_rows, 4 * N_BLOCKS, figsize=(6.9, 8.1), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for i, name in enumerate(names):
        block, row = divmod(i, n_rows)
        image = lesions[i % len(lesions)]
        shown = [image, *(perturb(image, name, severity, arguments.seed) for severity in SHOWN)]
        for ax, picture, title in zip(axes[row, 4 * block :], shown, ["original", *map(str, SHOWN)]):
            ax.imshow(picture)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(title, fontsize=7)
        axes[row, 4 * block].set_ylabel(name.replace("_", " "), fontsize=7)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=82)
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
