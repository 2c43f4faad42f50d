"""The command `cbdc`: parse, call, print."""

import argparse
import csv
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import CBDCError, DatasetError, ParameterError

if TYPE_CHECKING:  # torch costs seconds at import; each command imports what it needs
    from .backbones import FineTuner
    from .classifier import CBDCClassifier
    from .datasets import LesionDataset
    from .diagnosis import Diagnosis
    from .heads import BayesianHead

__all__ = ["main"]

_SOME_REFUSED = 3  # exit code
_GROUPWISE = ("group", "class_and_group")
_LOSSES = ("cross_entropy", "class_balanced", "focal", "logit_adjusted")
_EPILOG = """\
exit codes: 0 done, 1 something in your data or arguments to mend (said in one sentence), 2 wrong usage,
3 done, but some images were refused (each has its row and reason)

start here:
  cbdc demo --out demo                                          made lesions, no data needed; look at demo/report.html
  cbdc fit ham10000 --root DIR --out ham.cbdc                   fit and calibrate on your data
  cbdc evaluate ham.cbdc ham10000 --root DIR --out evaluation   its test part: metrics.json and report.html
  cbdc predict ham.cbdc photos/ --out rows.csv                  one row an image

Research software for decision support; not a cleared medical device.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return arguments.command(arguments) or 0
    except CBDCError as error:
        print(f"cbdc: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        if type(error).__name__ != "InvalidParameterError":  # scikit-learn's, of a parameter out of its range
            raise
        print(f"cbdc: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cbdc: interrupted; embeddings kept with --cache are not lost", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"cbdc: warning: {message}", file=sys.stderr)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _out_file(*suffixes: str) -> Callable[[str], Path]:
    """Type of an argument: a file in a folder that is there, so that no work is lost for want of one."""

    def check(text: str) -> Path:
        path = Path(text)
        if suffixes and path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends in {' or '.join(suffixes)}")
        if not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {str(path.parent)!r}; make it first")
        return path

    return check


_FINE_TUNE: dict[str, dict[str, Any]] = {  # parameters of FineTuner; what is not given keeps its default there
    "epochs": {"type": int, "help": "of --fine-tune (default: 20)"},
    "minutes": {"type": float, "help": "budget of --fine-tune; lowers the epochs to what will fit"},
    "loss": {"choices": _LOSSES, "help": "of --fine-tune (default: cross_entropy)"},
    "learning_rate": {"type": float, "help": "peak of --fine-tune (default: 0.002)"},
    "mixup": {"type": float, "help": "of --fine-tune: how much images are blended (default: 0)"},
    "first_size": {"type": int, "help": "side of the images of --fine-tune's first epoch (default: as all)"},
    "validation_fraction": {"type": float, "help": "held out by --fine-tune, for the head (default: 0.2)"},
    "keep": {"choices": ["best", "last"], "help": "which epoch's network --fine-tune keeps (default: best)"},
    "checkpoint": {"type": _out_file(), "help": "file from which --fine-tune resumes if it was killed"},
}


def _level(text: str) -> float:
    if not 0 < (level := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number strictly between 0 and 1, for example 0.9")
    return level


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = action.default is not None and action.default is not False
        return super()._get_help_string(action) if has_one else action.help


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cbdc",
        description="Skin lesion images to calibrated prediction sets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cbdc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, summary: str, description: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {description}".strip(),
            formatter_class=_Help,
        )
        sub.set_defaults(command=function)
        return sub

    demo = command(
        "demo", _demo, "train, calibrate, evaluate and explain on made lesions", "Needs no data and no network."
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    demo.add_argument("--n", type=int, default=2000, help="number of made lesions")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random")

    datasets = command("datasets", _datasets, "list the data sets that can be read, or describe one that you have")
    datasets.add_argument("dataset", nargs="?", help="name, to describe the one in --root")
    datasets.add_argument("--root", type=Path, help="its folder")

    embed = command(
        "embed", _embed, "images to embeddings", "Writes a .npz with the arrays embeddings, image, label; no pickle."
    )
    _add_dataset(embed)
    embed.add_argument("--out", type=_out_file(".npz"), required=True, help=".npz file to write")
    _add_backbone(embed)
    _add_machine(embed)

    fit = command(
        "fit",
        _fit,
        "fit and calibrate a model",
        "Splits by patient or lesion into training, calibration and test; the test part is left for evaluate.",
    )
    _add_dataset(fit)
    fit.add_argument("--out", type=_out_file(), required=True, help="model file to write, for example ham.cbdc")
    _add_backbone(fit, "network; several with commas between them make an ensemble")
    fit.add_argument("--image-size", type=int, help="side of the network's square input (default: its own)")
    fit.add_argument("--views", type=int, default=1, choices=[1, 2, 4, 8], help="mirror images and turns averaged over")
    fit.add_argument("--color-constancy", choices=["shades_of_gray"], help="take the cast of the light out first")
    fit.add_argument(
        "--fine-tune", action="store_true", help="teach the network on a part of the training lesions first"
    )
    no_pool = "fit the head alone, not pooled with the classifier that --fine-tune trains"
    fit.add_argument("--no-pool", action="store_true", help=no_pool)
    for name, option in _FINE_TUNE.items():
        fit.add_argument(f"--{name.replace('_', '-')}", **option)
    fit.add_argument(
        "--head",
        default="auto",
        help="Bayesian head: auto (pooled and mapped; laplace with --fine-tune), or a name in cbdc.heads.HEADS",
    )
    fit.add_argument("--feature-map", choices=["hellinger"], help="of the embeddings, before the head: square roots")
    scores = ["lac", "aps", "raps", "saps", "margin", "topk", "rank"]
    fit.add_argument("--score", default="lac", choices=scores, help="conformity score")
    fit.add_argument(
        "--condition-on",
        default="class",
        choices=["none", "class", "group", "class_and_group"],
        help="whom the guarantee holds for",
    )
    fit.add_argument(
        "--weigh-by", choices=["image", "unit"], default="image", help="what counts once in the head's fit"
    )
    fit.add_argument("--group-by", help="column with the groups, for example skin_type; for the conditions on groups")
    fit.add_argument("--missing-group", metavar="NAME", help="group of the images that have none, for example unknown")
    fit.add_argument("--confidence-level", type=_level, default=0.9, help="level of the sets; any may be asked later")
    fit.add_argument(
        "--guarantee",
        default="marginal",
        choices=["marginal", "pac"],
        help="whether the level holds on average over calibrations, or given this one with probability 1 - delta",
    )
    fit.add_argument(
        "--delta", type=_level, default=argparse.SUPPRESS, help="probability that a pac guarantee may fail, 0.05"
    )
    fit.add_argument(
        "--by", choices=["patient", "lesion", "image"], help="unit of the split (default: the coarsest known)"
    )
    fit.add_argument("--sizes", type=float, nargs=3, default=[0.6, 0.2, 0.2], help="training, calibration, test")
    fit.add_argument("--seed", type=int, default=0, help="seed of everything random")
    _add_machine(fit)

    evaluate = command(
        "evaluate",
        _evaluate,
        "evaluate a model: metrics.json and report.html",
        "On the data set of the fit, its test part; on another one, all of it.",
    )
    evaluate.add_argument("model", type=Path, help="model file of cbdc fit")
    _add_dataset(evaluate)
    evaluate.add_argument("--out", type=Path, required=True, help="folder to write to")
    evaluate.add_argument("--confidence-level", type=_level, help="level of the sets (default: the model's)")
    _add_machine(evaluate)

    predict = command(
        "predict",
        _predict,
        "prediction sets for images: one row an image",
        "Without --out the diagnoses are printed. An image that cannot be read gets a refused row with the reason.",
    )
    _add_images(predict)
    predict.add_argument("--out", type=_out_file(".csv", ".jsonl"), help="rows to write: .csv or .jsonl")

    report = command("report", _report, "a page that explains the prediction set of each image")
    _add_images(report)
    report.add_argument("--out", type=_out_file(".html"), required=True, help="HTML file to write")
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="name of a data set (see cbdc datasets), or folder, or csv")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")


def _add_backbone(parser: argparse.ArgumentParser, what: str = "network") -> None:
    parser.add_argument("--backbone", default="efficientnet_lite0", help=what)
    parser.add_argument("--weights", default="default", help="its weights: default, a file, or random")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="model file of cbdc fit")
    parser.add_argument("images", type=Path, nargs="+", help="images, or folders of them")
    parser.add_argument("--confidence-level", type=_level, help="level of the sets (default: the model's)")
    parser.add_argument("--group", help="group of these images, for a model with group-wise guarantees")
    _add_machine(parser)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings between runs")
    parser.add_argument("--engine", default="auto", choices=["auto", "onnx", "torch"], help="what runs the network")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"cache_dir": arguments.cache, "engine": arguments.engine, "verbose": not arguments.quiet}


def _demo(arguments: argparse.Namespace) -> None:
    from .classifier import CBDCClassifier
    from .images import write_image
    from .phantom import make_lesions
    from .report import case_report, evaluate, write_report

    out = _folder(arguments.out)
    print(f"1. Rendering {arguments.n} made lesions of seven diagnoses, with their exact posterior ...")
    lesions = make_lesions(arguments.n, random_state=arguments.seed)
    train, calibration, test = lesions.split(random_state=arguments.seed)
    print(f"   split by {lesions.unit}: {len(train)} to train, {len(calibration)} to calibrate, {len(test)} to test")
    print("2. Embedding them with EfficientNet-Lite0 (ImageNet weights) and fitting the Bayesian heads ...")
    clf = CBDCClassifier(verbose=True, random_state=arguments.seed).fit(train)
    print("3. Conformal calibration, one image a unit, a threshold for each diagnosis ...")
    clf.conformalize(calibration)
    print("4. Evaluating on the test part ...\n")
    evaluation = evaluate(clf, test, random_state=arguments.seed)
    print(evaluation)
    page = write_report(evaluation, out)
    examples = [write_image(test.images[i], _folder(out / "images") / f"lesion_{i}.png") for i in range(6)]
    diagnoses = clf.diagnose(examples)
    assert isinstance(diagnoses, list)
    case_report(diagnoses, out / "cases.html", images=examples)
    clf.save(out / "model.cbdc")
    print(f"\n5. One lesion, explained:\n\n{diagnoses[0]}\n")
    program = os.path.relpath(sys.executable)
    print(f"Open {page} and {out / 'cases.html'}; try: {program} -m cbdc predict {out / 'model.cbdc'} {out / 'images'}")


def _datasets(arguments: argparse.Namespace) -> None:
    from .datasets import DATASETS

    if arguments.dataset is None:
        for name, layout in DATASETS.items():
            print(f"{name:<16}{layout.__doc__}")
    else:
        print(_load(arguments))


def _embed(arguments: argparse.Namespace) -> None:
    import numpy as np

    from .backbones import ImageEmbedder

    dataset = _load(arguments)
    embedder = ImageEmbedder(arguments.backbone, weights=arguments.weights, **_machine(arguments))
    embeddings = embedder.fit_transform(dataset.images)
    names = np.asarray(dataset.frame["image"].astype(str).tolist(), dtype=str)
    np.savez(arguments.out, embeddings=embeddings, image=names, label=dataset.labels)
    print(f"{arguments.out}: {embeddings.shape[0]} x {embeddings.shape[1]} float32, {embedder.fingerprint_[:12]}")


def _fit(arguments: argparse.Namespace) -> None:
    from .classifier import CBDCClassifier

    delta = getattr(arguments, "delta", None)
    if delta is not None and arguments.guarantee != "pac":
        raise ParameterError("--delta: it goes with --guarantee pac; give both, or leave it out.")
    dataset = _load(arguments)
    _settle_groups(arguments, dataset)
    split = {"by": arguments.by, "sizes": list(arguments.sizes), "random_state": arguments.seed}
    train, calibration, test = dataset.split(**split)
    backbones = [name.strip() for name in arguments.backbone.split(",")]
    clf = CBDCClassifier(
        backbones if len(backbones) > 1 else arguments.backbone,
        _head(arguments),
        weights=arguments.weights,
        fine_tune=_fine_tuner(arguments),
        pool=not arguments.no_pool,
        image_size=arguments.image_size,
        color_constancy=arguments.color_constancy,
        n_views=arguments.views,
        weigh_by=arguments.weigh_by,
        score=arguments.score,
        condition_on=None if arguments.condition_on == "none" else arguments.condition_on,
        guarantee=arguments.guarantee,
        delta=0.05 if delta is None else delta,
        group_by=arguments.group_by,
        confidence_level=arguments.confidence_level,
        random_state=arguments.seed,
        **_machine(arguments),
    )
    clf.fit(train).conformalize(calibration)
    notes = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "split": split}
    notes["missing_group"] = arguments.missing_group
    clf.save(arguments.out, notes=notes)
    print(
        f"{arguments.out}: fitted on {len(train)} images, calibrated on {clf.provenance_['calibration']['n_units']} "
        f"{dataset.unit}s; {len(test)} images are left for\n"
        f"  cbdc evaluate {arguments.out} {arguments.dataset} --root {arguments.root} --out evaluation\n"
        f"{clf.certificate()}"
    )


def _head(arguments: argparse.Namespace) -> "str | BayesianHead":
    if arguments.feature_map is None:
        return arguments.head
    from .heads import make_head

    if arguments.head == "auto":
        raise ParameterError("--feature-map: it goes with a --head by name; auto brings its own. Fix: give --head too.")
    head = make_head(arguments.head, random_state=arguments.seed)
    if "feature_map" not in head.get_params():
        raise ParameterError(
            f"--feature-map: head {arguments.head!r} takes none. Fix: leave it out, or another --head."
        )
    return head.set_params(feature_map=arguments.feature_map)


def _fine_tuner(arguments: argparse.Namespace) -> "FineTuner | None":
    given = {name: getattr(arguments, name) for name in _FINE_TUNE}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.no_pool and not arguments.fine_tune:
        raise ParameterError("--no-pool: it goes with --fine-tune; give both, or leave it out.")
    if not arguments.fine_tune:
        if given:
            raise ParameterError(
                f"--{next(iter(given)).replace('_', '-')}: it goes with --fine-tune; give both, or leave it out."
            )
        return None
    from .backbones import FineTuner

    return FineTuner(**given, verbose=not arguments.quiet)


def _settle_groups(arguments: argparse.Namespace, dataset: "LesionDataset") -> None:
    """See, before anything is embedded, that every image has a group where one is needed."""
    columns = ", ".join(map(str, dataset.frame.columns))
    if arguments.condition_on not in _GROUPWISE:
        for name in ("group_by", "missing_group"):
            if getattr(arguments, name) is not None:
                raise ParameterError(
                    f"--{name.replace('_', '-')}: it goes with --condition-on {' or '.join(_GROUPWISE)}; got "
                    f"{arguments.condition_on}."
                )
    elif arguments.group_by is None:
        raise ParameterError(
            f"--group-by is missing: --condition-on {arguments.condition_on} takes the column that holds the groups; "
            f"{dataset.name} has {columns}."
        )
    elif arguments.group_by not in dataset.frame:
        raise ParameterError(f"--group-by {arguments.group_by}: {dataset.name} has no such column; it has {columns}.")
    elif arguments.missing_group is not None:
        _name_missing_groups(dataset, arguments.group_by, arguments.missing_group)
    elif n_missing := int(dataset.frame[arguments.group_by].isna().sum()):
        raise ParameterError(
            f"--group-by {arguments.group_by}: {n_missing} of {len(dataset)} images have none. Fix: --missing-group "
            "unknown makes them a group of their own."
        )


def _name_missing_groups(dataset: "LesionDataset", column: str, name: str) -> None:
    """The column in words, with a name for the images that have no group."""
    values = dataset.frame[column]
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    dataset.frame = dataset.frame.assign(**{column: [w if k else name for w, k in zip(words, values.notna())]})


def _evaluate(arguments: argparse.Namespace) -> None:
    from .report import evaluate, write_report

    clf = _model(arguments)
    dataset = _unseen(clf, _load(arguments))
    missing_group = getattr(clf, "notes_", {}).get("missing_group")
    if missing_group is not None and clf.group_by is not None and clf.group_by in dataset.frame:
        _name_missing_groups(dataset, clf.group_by, missing_group)
    evaluation = evaluate(clf, dataset, confidence_level=arguments.confidence_level)
    page = write_report(evaluation, _folder(arguments.out))
    print(f"{evaluation}\n\n{page}")


def _unseen(clf: "CBDCClassifier", dataset: "LesionDataset") -> "LesionDataset":
    """The part of the data set that the model has not seen: the test part of its own, all of another one."""
    notes = getattr(clf, "notes_", {})
    if notes.get("dataset") != dataset.name:
        return dataset
    if notes["fingerprint"] != dataset.fingerprint:
        raise DatasetError(
            f"{dataset.name}: the model was fitted on a data set of this name with other rows, so its test part is "
            "unknown. Fix: give the same files, or fit again."
        )
    return dataset.split(**notes["split"])[2]


def _predict(arguments: argparse.Namespace) -> int:
    rows, _, labels = _diagnose(arguments)
    if arguments.out is None:
        print("\n\n".join(str(row) for row in rows))
    elif arguments.out.suffix == ".jsonl":
        arguments.out.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows), encoding="utf-8")
    else:
        _write_csv(rows, labels, arguments.out)
    return _summary(rows, arguments.out)


def _report(arguments: argparse.Namespace) -> int:
    from .report import case_report

    rows, paths, _ = _diagnose(arguments)
    case_report(rows, arguments.out, images=paths)
    return _summary(rows, arguments.out)


def _diagnose(arguments: argparse.Namespace) -> tuple[list["Diagnosis"], list[Path], list[str]]:
    paths = list(_files(arguments.images))
    if not paths:
        raise DatasetError(
            f"{', '.join(path.name for path in arguments.images)}: no file there. Give images or folders."
        )
    clf = _model(arguments)
    known = clf.conformal_.groups_
    if known is None and arguments.group is not None:
        raise DatasetError("--group: this model's guarantee is not by group; leave it out.")
    if known is not None and arguments.group is None:
        raise DatasetError(f"--group is missing: this model's guarantee is by group; known are {known.tolist()}.")
    group = arguments.group if known is None or known.dtype.kind not in "iuf" else _number(arguments.group)
    rows = clf.diagnose(paths, arguments.confidence_level, groups=None if known is None else [group] * len(paths))
    assert isinstance(rows, list)
    return rows, paths, [str(label) for label in clf.classes_]


def _write_csv(rows: Sequence["Diagnosis"], labels: Sequence[str], path: Path) -> None:
    header = ["image", "sha256", "status", "reason", "set", *(f"prob_{label}" for label in labels)]
    header += [f"pvalue_{label}" for label in labels]
    header += ["entropy", "mutual_information", "confidence_level", "quality", "quality_reasons"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            record = row.to_dict()
            cells: list[Any] = [row.image, row.sha256, row.status, row.reason, "|".join(row.prediction_set)]
            cells += [row.probabilities.get(label, "") for label in labels]
            cells += [row.p_values.get(label, "") for label in labels]
            cells += [record[key] for key in ("entropy", "mutual_information", "confidence_level", "quality")]
            writer.writerow([_cell(cell) for cell in [*cells, "|".join(row.quality_reasons)]])


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _summary(rows: Sequence["Diagnosis"], out: Path | None) -> int:
    refused = sum(row.status == "refused" for row in rows)
    where = "" if out is None else f"{out}: "
    print(f"{where}{len(rows)} images, {refused} refused", file=sys.stderr)
    return _SOME_REFUSED if refused else 0


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """Files as they are, folders as the files below them, in the order of their names; hidden files are left out."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        else:
            yield path


def _load(arguments: argparse.Namespace) -> "LesionDataset":
    from .datasets import load_dataset

    if arguments.root is None:
        raise DatasetError(f"{arguments.dataset}: --root is missing; give the folder of the data set.")
    return load_dataset(arguments.dataset, arguments.root)


def _model(arguments: argparse.Namespace) -> "CBDCClassifier":
    from .classifier import CBDCClassifier

    return CBDCClassifier.load(arguments.model, **_machine(arguments))


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be made a folder ({error.strerror}). Give another --out.") from error
    return path
