"""A made-up study with the shape of a real one: a small diffusion transformer and its figures."""

from __future__ import annotations

import numpy as np

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Option
from qua2sedimo.report import (
    GraphNode,
    LayerChoice,
    MeasuredPoint,
    MetricInfo,
    PictureRow,
    PredictorQuality,
    ReportData,
    TableRow,
)
from qua2sedimo.report.data import OtherSize, PointKind
from qua2sedimo.sensitivity import ExpectedDamage, LayerStep, OptionRow
from qua2sedimo.sensitivity.steps import Rated, step

METRICS = [
    MetricInfo(
        "psnr", "PSNR", "dB", True, "Likeness to the full-precision picture of the same prompt and noise.", True
    ),
    MetricInfo("features", "feature distance", "", False, "Distance of image features to full precision.", True),
    MetricInfo("accuracy", "attributes right", "%", True, "How often a classifier finds what the caption asked for."),
]
UNIFORM = {"uaq-4": (4.13, 27.4), "kmeans_c-4": (5.02, 29.8), "kmeans_a-4": (4.01, 24.9),
           "uaq-3": (3.13, 18.2), "kmeans_c-3": (3.51, 21.0), "kmeans_a-3": (3.0, 15.7)}  # fmt: skip
OPTIONS = {"uaq": 0.06, "kmeans_c": 0.45, "kmeans_a": 0.0}


def synthetic_data(blocks: int = 8, records: int = 120, side: int = 16, evil: str = "") -> ReportData:
    """``evil`` is put into every text, to see that it is escaped."""
    random = np.random.default_rng(5)
    layers = _layers(blocks, evil)
    options, steps = [], []
    for layer in layers:
        rows, cost = _options(layer, random)
        options += rows
        steps.append(cost)
    best = {}
    allowed = {"AdaLN": 6.5, "t-Embed": 5.5, "FF 2": 4.2, "SA-V": 4.2, "FF 1": 2.9}
    for row in sorted(options, key=lambda row: row.score):
        if row.average_bits < allowed.get(row.operation, 3.7):
            best[row.layer] = row
    choices = [_choice(best[layer.name], evil) for layer in layers]
    measured = random.normal(20, 3, 40)
    return ReportData(
        title=f"avatars-pixart at 3.5 bits{evil}",
        model=f"PixArtTransformer2DModel{evil}",
        pipeline=f"avatars-pixart{evil}",
        layers=len(layers),
        weights=sum(layer.weights for layer in layers),
        full_bytes=13_842_432,
        budget_bits=3.5,
        ours_bits=3.49,
        ours_bytes=3_021_112,
        table=_table(evil),
        metric_infos=METRICS,
        pictures=_pictures(side, random, evil),
        captions=[f"{hair} hair, {glasses} glasses, {top} top{evil}" for hair, glasses, top in zip(
            ("red", "dark brown", "blond", "black", "grey", "red", "blond", "brown"),
            ("dark", "no", "round", "no", "dark", "no", "red", "round"),
            ("green", "blue", "white", "red", "orange", "violet", "green", "black"))],
        objective=METRICS[0],
        points=_points(records, random, evil),
        options=options,
        steps=steps,
        choices=choices,
        predictor=PredictorQuality(
            Estimate(0.86, 0.78, 0.92, 40),
            {"ridge regression": Estimate(0.81, 0.70, 0.89, 40),
             "average bits": Estimate(0.55, 0.31, 0.73, 40)},
            [((float(v) - 20) / 3 + random.normal(0, 0.5), float(v)) for v in measured],
            0.95,
        ),
        provenance={"command": f"qua2sedimo run avatars-pixart --bits 3.5{evil}", "seed": "0",
                    "versions": "torch 2.9, diffusers 0.40", "measuring": "7 min 12 s, 128 configurations"},
        nodes=_nodes(layers),
        cost_unit="dB",
        commands=[f"qua2sedimo report study --bits 3.5{evil}"],
        settings=f"model: avatars-pixart\ninputs: ['{evil}']\n",
        findings=[f"The time embedding and AdaLN projections lose most when they go from 4 to 3 bits.{evil}",
                  "The last block is more sensitive than the middle ones, by more than the spread of folds."],
        code=f"import qua2sedimo{evil}\n",
        other_bytes=412_000_000,
        expected=_expected(layers),
        sizes=[OtherSize(b, int(b * 865_152 / 8), 6 * (b - 3.5), {f"FF 1{evil}": b - 0.5, "AdaLN": b + 1})
               for b in (2.5, 3.0, 3.5, 4.0)],
    )  # fmt: skip


def _expected(layers: list[WeightLayer]) -> list[ExpectedDamage]:
    """Shares that fall along the network, and thirds that move from early to late steps."""
    shares = 0.5 ** np.arange(len(layers))
    late = np.linspace(0.1, 0.6, len(layers))
    return [
        ExpectedDamage(layer, Option("uaq", 3), float(share), (float(0.9 - at), 0.1, float(at)))
        for layer, share, at in zip(layers, shares / shares.sum(), late)
    ]


def _nodes(layers: list[WeightLayer]) -> list[GraphNode]:
    """A chain of layers with an add behind every fifth, which also reads the first layer."""
    nodes: list[GraphNode] = []
    for layer in layers:
        nodes.append(GraphNode(layer.name, "layer", layer.block, (len(nodes) - 1,) if nodes else ()))
        if len(nodes) % 6 == 5:
            nodes.append(GraphNode(f"add {len(nodes)}", "add", layer.block, (0, len(nodes) - 1)))
    return nodes


def made_layer(name: str, operation: str, block: str, index: int | None, weights: int) -> WeightLayer:
    shape = (max(1, weights // 256), 256)
    return WeightLayer(name, name, None, shape, "linear", operation, block, index, "middle")


def _layers(blocks: int, evil: str) -> list[WeightLayer]:
    layers = [
        made_layer(f"pos_embed.proj{evil}", "Patchify", "input", None, 3072),
        made_layer("adaln_single.emb.timestep_embedder.linear_1", "t-Embed", "input", None, 65536),
        made_layer("adaln_single.emb.timestep_embedder.linear_2", "t-Embed", "input", None, 65536),
        made_layer("adaln_single.linear", "AdaLN", "input", None, 393216),
        made_layer("caption_projection.linear_1", "c-Embed", "input", None, 16384),
    ]
    inner = {"attn1.to_q": "SA-Q", "attn1.to_k": "SA-K", "attn1.to_v": "SA-V", "attn1.to_out.0": "SA-Out",
             "attn2.to_q": "CA-Q", "attn2.to_k": "CA-K", "attn2.to_v": "CA-V", "attn2.to_out.0": "CA-Out",
             "ff.net.0.proj": "FF 1", "ff.net.2": "FF 2"}  # fmt: skip
    for block in range(blocks):
        for name, operation in inner.items():
            weights = 262144 if operation.startswith("FF") else 65536
            layers.append(made_layer(f"transformer_blocks.{block}.{name}", operation, f"block {block}", block, weights))
    layers.append(made_layer("proj_out", "Out", "output", None, 3072))
    return layers


def _options(layer: WeightLayer, random: np.random.Generator) -> tuple[list[OptionRow], LayerStep]:
    need = {"AdaLN": 2.4, "t-Embed": 1.9, "Out": 1.6, "FF 2": 1.1, "SA-V": 0.9, "SA-Out": 0.8}.get(
        layer.operation, 0.35
    )
    need *= 1 + 0.08 * (layer.block_index or 0) + random.normal(0, 0.15)
    found, rated = [], []
    for method, overhead in OPTIONS.items():
        taste = random.normal(0, 0.25)
        for bits in (2, 3, 4, 5, 6, 8):
            size = bits + overhead * 2 ** (bits - 3 if method == "kmeans_c" else 0)
            good = 1.2 - need * 2.2 ** (4 - size) + taste + random.normal(0, 0.04)
            spread = abs(random.normal(0.1, 0.04))
            folds = tuple(good + spread * deviation for deviation in (-1.2, -0.4, 0.1, 0.5, 1.0))
            rated.append(Rated(f"{method}-{bits}", size, folds))
            found.append(OptionRow(
                layer.name, layer.operation, layer.block, layer.block_index, layer.stage, layer.weights,
                f"{method}-{bits}", method, bits, size, int(layer.weights * size / 8), 4.0**-bits, good, spread,
                1.5 - good, spread,
            ))  # fmt: skip
    cost = step(rated)
    assert cost is not None
    return found, LayerStep(layer, cost)


def _choice(row: OptionRow, evil: str) -> LayerChoice:
    reason = f"uaq-2 would save 1.0 kB and cost 0.2 ± 0.1 dB.{evil}"
    shape = (row.weights // 256, 256)
    return LayerChoice(**vars(row), shape=shape, decided="the budget", reason=reason)


def _table(evil: str) -> list[TableRow]:
    def metrics(psnr: float, images: int = 64) -> dict[str, Estimate]:
        distance, right = 40 / psnr**1.4, min(97.0, 60 + 1.3 * psnr)
        return {
            "psnr": Estimate(psnr, psnr - 0.8, psnr + 0.9, images),
            "features": Estimate(distance, distance * 0.93, distance * 1.08, images),
            "accuracy": Estimate(right, right - 2.1, right + 1.8, images),
        }

    inf = float("inf")
    full = {
        "psnr": Estimate(inf, inf, inf, 64),
        "features": Estimate(0, 0, 0, 64),
        "accuracy": Estimate(96.4, 95, 97.6, 64),
    }
    rows = [TableRow(f"full precision{evil}", "full", 16.0, 13_842_432, full)]
    for name, (bits, psnr) in UNIFORM.items():
        method, _, wide = name.partition("-")
        spoken = {"uaq": "uniform UAQ", "kmeans_c": "K-Means C", "kmeans_a": "K-Means A"}[method]
        rows.append(TableRow(f"{spoken}, {wide} bits", "uniform", bits, int(865_152 * bits), metrics(psnr)))
    rows.append(TableRow("ours, 3.5 bits", "ours", 3.49, 3_021_112, metrics(27.1)))
    return rows


def _points(records: int, random: np.random.Generator, evil: str) -> list[MeasuredPoint]:
    points = [MeasuredPoint(16.0, Estimate(*[float("inf")] * 3, 64), "full", "full precision")]
    for _ in range(records):
        bits = float(random.uniform(2.9, 4.6))
        value = 7 + 4.2 * bits + float(random.normal(0, 1.3))
        points.append(_point(bits, value, "random", "random"))
    for name, (bits, value) in UNIFORM.items():
        points.append(_point(bits, value, "uniform", name + evil))
    for number in range(5):
        value = 26.8 - 0.35 * number
        points.append(_point(3.5 - 0.012 * number, value, "candidate", f"choice {number + 2}"))
    return [*points, _point(3.49, 27.1, "ours", f"ours{evil}")]


def _point(bits: float, value: float, kind: PointKind, label: str) -> MeasuredPoint:
    return MeasuredPoint(bits, Estimate(value, value - 0.8, value + 0.9, 64), kind, label)


def _pictures(side: int, random: np.random.Generator, evil: str) -> list[PictureRow]:
    rows, seeds = [], random.integers(0, 255, (8, 3, 3))
    for name, noise in (
        (f"full precision{evil}", 0),
        ("uniform UAQ, 4 bits", 12),
        ("uniform UAQ, 3 bits", 60),
        ("ours, 3.5 bits", 9),
    ):
        images = []
        for hair, face, top in seeds:
            picture = np.full((16, 16, 3), 232.0)
            picture[4:11, 4:12], picture[2:5, 3:13], picture[11:, 2:14] = face, hair, top
            picture[7, 5:7] = picture[7, 9:11] = 20
            picture = picture.repeat(side // 16, 0).repeat(side // 16, 1)
            images.append((picture + random.normal(0, noise, picture.shape)).clip(0, 255).astype(np.uint8))
        rows.append(PictureRow(name, images))
    return rows
