"""A made-up study with the shape of a real one: a small diffusion transformer and its figures."""

from __future__ import annotations

import numpy as np

from qua2sedimo.report import (
    GraphNode,
    LayerChoice,
    LayerScore,
    MeasuredPoint,
    MetricInfo,
    MetricValue,
    PictureRow,
    PredictorQuality,
    ReportData,
    TableRow,
)

METRICS = [
    MetricInfo("psnr", "PSNR", "dB", True, "Likeness to the full-precision picture of the same prompt and noise."),
    MetricInfo("features", "feature distance", "", False, "Distance of image features to full precision, paired."),
    MetricInfo("accuracy", "attributes right", "%", True, "How often a classifier finds what the caption asked for."),
]
UNIFORM = {"uaq-4": (4.13, 27.4), "kmeans_c-4": (5.02, 29.8), "kmeans_a-4": (4.01, 24.9),
           "uaq-3": (3.13, 18.2), "kmeans_c-3": (3.51, 21.0), "kmeans_a-3": (3.0, 15.7)}  # fmt: skip
OPTIONS = {"uaq": 0.06, "kmeans_c": 0.45, "kmeans_a": 0.0}


def synthetic_data(blocks: int = 8, records: int = 120, side: int = 16, evil: str = "") -> ReportData:
    """``evil`` is put into every text, to see that it is escaped."""
    random = np.random.default_rng(5)
    layers = _layers(blocks, evil)
    scores = [score for layer in layers for score in _scores(*layer, random)]
    best = {}
    allowed = {"AdaLN": 6.5, "t-Embed": 5.5, "FF 2": 4.2, "SA-V": 4.2, "FF 1": 2.9}
    for score in sorted(scores, key=lambda score: score.score):
        if score.average_bits < allowed.get(score.operation, 3.7):
            best[score.layer] = score
    choices = [_choice(best[layer], weights, evil) for layer, _, _, _, weights in layers]
    measured = random.normal(20, 3, 40)
    return ReportData(
        title=f"avatars-pixart at 3.5 bits{evil}",
        model=f"PixArtTransformer2DModel{evil}",
        pipeline=f"avatars-pixart{evil}",
        layers=len(layers),
        weights=sum(weights for *_, weights in layers),
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
        objective="psnr",
        points=_points(records, random, evil),
        scores=scores,
        choices=choices,
        predictor=PredictorQuality(
            MetricValue(0.86, 0.78, 0.92, 40),
            {"ridge regression": MetricValue(0.81, 0.70, 0.89, 40),
             "average bits": MetricValue(0.55, 0.31, 0.73, 40)},
            [float(v) for v in (measured - 20) / 3 + random.normal(0, 0.5, 40)],
            [float(v) for v in measured],
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
    )  # fmt: skip


def _nodes(layers: list[tuple[str, str, str, int | None, int]]) -> list[GraphNode]:
    """A chain of layers with an add behind every fifth, which also reads the first layer."""
    nodes: list[GraphNode] = []
    for name, _, block, _, _ in layers:
        nodes.append(GraphNode(name, "layer", block, (len(nodes) - 1,) if nodes else ()))
        if len(nodes) % 6 == 5:
            nodes.append(GraphNode(f"add {len(nodes)}", "add", block, (0, len(nodes) - 1)))
    return nodes


def _layers(blocks: int, evil: str) -> list[tuple[str, str, str, int | None, int]]:
    layers: list[tuple[str, str, str, int | None, int]] = [
        (f"pos_embed.proj{evil}", "Patchify", "input", None, 3072),
        ("adaln_single.emb.timestep_embedder.linear_1", "t-Embed", "input", None, 65536),
        ("adaln_single.emb.timestep_embedder.linear_2", "t-Embed", "input", None, 65536),
        ("adaln_single.linear", "AdaLN", "input", None, 393216),
        ("caption_projection.linear_1", "c-Embed", "input", None, 16384),
    ]
    inner = {"attn1.to_q": "SA-Q", "attn1.to_k": "SA-K", "attn1.to_v": "SA-V", "attn1.to_out.0": "SA-Out",
             "attn2.to_q": "CA-Q", "attn2.to_k": "CA-K", "attn2.to_v": "CA-V", "attn2.to_out.0": "CA-Out",
             "ff.net.0.proj": "FF 1", "ff.net.2": "FF 2"}  # fmt: skip
    for block in range(blocks):
        for name, operation in inner.items():
            weights = 262144 if operation.startswith("FF") else 65536
            layers.append((f"transformer_blocks.{block}.{name}", operation, f"block {block}", block, weights))
    layers.append(("proj_out", "Out", "output", None, 3072))
    return layers


def _scores(layer, operation, block, index, weights, random) -> list[LayerScore]:  # type: ignore[no-untyped-def]
    need = {"AdaLN": 2.4, "t-Embed": 1.9, "Out": 1.6, "FF 2": 1.1, "SA-V": 0.9, "SA-Out": 0.8}.get(operation, 0.35)
    need *= 1 + 0.08 * (index or 0) + random.normal(0, 0.15)
    found = []
    for method, overhead in OPTIONS.items():
        taste = random.normal(0, 0.25)
        for bits in (2, 3, 4, 5, 6, 8):
            size = bits + overhead * 2 ** (bits - 3 if method == "kmeans_c" else 0)
            good = 1.2 - need * 2.2 ** (4 - size) + taste + random.normal(0, 0.04)
            spread = abs(random.normal(0.1, 0.04))
            folds = tuple(good + spread * deviation for deviation in (-1.2, -0.4, 0.1, 0.5, 1.0))
            found.append(LayerScore(
                layer, operation, block, index, f"{method}-{bits}", method, bits, size, good, spread, folds,
                int(weights * size / 8), 4.0**-bits, 1.5 - good, spread,
            ))  # fmt: skip
    return found


def _choice(score: LayerScore, weights: int, evil: str) -> LayerChoice:
    nbytes = int(weights * score.average_bits / 8)
    shape = (max(1, weights // 256), 256)
    place = (score.layer, score.operation, score.block, shape, weights, score.option)
    error, reason = 10 ** -(score.average_bits / 2), f"uaq-2 would save 1.0 kB and cost 0.2 ± 0.1 dB.{evil}"
    return LayerChoice(*place, nbytes, score.average_bits, error, score.score, score.spread, "the budget", reason)


def _table(evil: str) -> list[TableRow]:
    def metrics(psnr: float, images: int = 64) -> dict[str, MetricValue]:
        distance, right = 40 / psnr**1.4, min(97.0, 60 + 1.3 * psnr)
        return {
            "psnr": MetricValue(psnr, psnr - 0.8, psnr + 0.9, images),
            "features": MetricValue(distance, distance * 0.93, distance * 1.08, images),
            "accuracy": MetricValue(right, right - 2.1, right + 1.8, images),
        }

    inf = float("inf")
    full = {
        "psnr": MetricValue(inf, inf, inf, 64),
        "features": MetricValue(0, 0, 0, 64),
        "accuracy": MetricValue(96.4, 95, 97.6, 64),
    }
    rows = [TableRow(f"full precision{evil}", "full", 16.0, 13_842_432, full)]
    for name, (bits, psnr) in UNIFORM.items():
        method, _, wide = name.partition("-")
        spoken = {"uaq": "uniform UAQ", "kmeans_c": "K-Means C", "kmeans_a": "K-Means A"}[method]
        rows.append(TableRow(f"{spoken}, {wide} bits", "uniform", bits, int(865_152 * bits), metrics(psnr)))
    rows.append(TableRow("ours, 3.5 bits", "ours", 3.49, 3_021_112, metrics(27.1)))
    return rows


def _points(records: int, random: np.random.Generator, evil: str) -> list[MeasuredPoint]:
    points = [MeasuredPoint(16.0, float("inf"), float("inf"), float("inf"), "full", "full precision")]
    for _ in range(records):
        bits = float(random.uniform(2.9, 4.6))
        value = 7 + 4.2 * bits + float(random.normal(0, 1.3))
        points.append(MeasuredPoint(bits, value, value - 0.9, value + 0.9, "random", "random"))
    for name, (bits, value) in UNIFORM.items():
        points.append(MeasuredPoint(bits, value, value - 0.8, value + 0.9, "uniform", name + evil))
    for step in range(5):
        value = 26.8 - 0.35 * step
        points.append(
            MeasuredPoint(3.5 - 0.012 * step, value, value - 0.8, value + 0.8, "candidate", f"choice {step + 2}")
        )
    return [*points, MeasuredPoint(3.49, 27.1, 26.3, 28.0, "ours", f"ours{evil}")]


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
