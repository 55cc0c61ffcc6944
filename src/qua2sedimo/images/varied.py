"""Varied inputs: what calibration statistics are taken from besides a study's own prompts.

What a layer sees is known only for the prompts that it was observed with. These cover people, animals, things, places,
styles and ways to write a prompt, without a data set.
"""

from __future__ import annotations

import random
from typing import Any

from torch import nn

from qua2sedimo.images.generate import input_argument

_SUBJECTS = (
    "an old fisherman mending a net", "a girl in a yellow raincoat", "two boxers in a ring",
    "a chef tossing noodles", "a bride laughing", "a crowd at a concert", "an astronaut reading a newspaper",
    "a portrait of a bearded man", "a close-up of a woman's eyes", "hands shaping clay",
    "a child blowing soap bubbles", "a knight in rusty armour", "a red fox asleep", "a herd of elephants",
    "a tabby cat on a windowsill", "a macro shot of a bee", "an owl in flight", "a shoal of silver fish",
    "a dragon curled around a tower", "a wet golden retriever", "a jellyfish", "a parrot", "a bowl of ramen",
    "a sliced orange", "a wedding cake with blue roses", "fresh bread and butter", "a glass of red wine",
    "a vintage red bicycle", "a steam train on a viaduct", "a yellow taxi", "a sailing ship in a storm",
    "a rocket launch", "a motorcycle repair shop", "a wooden chair", "a pair of worn leather boots",
    "an antique brass clock", "a chess game", "a stack of old books", "a crystal vase of tulips",
    "a robot watering plants", "a laptop with code on its screen", "a neon sign that says OPEN",
    "a hand-painted street map", "a violin and sheet music", "a logo of a blue whale", "a gothic cathedral",
    "a small white house", "a glass skyscraper", "a Japanese temple gate", "ruins under vines",
    "a spiral staircase", "a cosy kitchen", "a crowded market", "a long bridge", "a lighthouse on a cliff",
    "snowy mountains", "a waterfall", "rolling green hills", "a desert with dunes", "a coral reef",
    "a bamboo forest", "a city skyline", "the surface of the moon", "a galaxy", "abstract black and white stripes",
    "a pattern of leaves",
)  # fmt: skip
_PLACES = (
    "in the rain", "at sunset", "on a beach", "in deep snow", "in a dark alley", "in front of a brick wall",
    "under water", "by a campfire", "on a wooden table", "in a sunlit meadow", "in a museum",
    "at night under street lights", "in fog", "on a plain white background", "in outer space",
    "in a field of lavender", "beside a river", "on a rooftop in Tokyo", "inside a greenhouse",
    "at the edge of a volcano", "in an empty swimming pool", "in autumn", "seen from above",
)  # fmt: skip
_STYLES = (
    "oil painting", "35 mm photograph", "watercolour", "pencil sketch", "3D render", "pixel art", "anime",
    "woodcut print", "low-poly illustration", "comic book page", "charcoal drawing", "black and white photograph",
    "stained glass", "claymation", "impressionist painting", "isometric view", "double exposure",
    "vaporwave poster", "children's book illustration", "technical drawing", "product photography", "ukiyo-e",
    "polaroid", "film still", "graffiti", "embroidery",
)  # fmt: skip
_QUALITIES = (
    "highly detailed", "soft light", "dramatic shadows", "pastel colours", "muted palette", "vivid colours",
    "wide angle", "shallow depth of field", "symmetrical composition", "minimalist", "golden hour", "backlit", "8k",
    "grainy", "bokeh", "sharp focus", "cinematic", "high contrast", "studio lighting", "intricate", "cheerful",
    "melancholic", "surreal",
)  # fmt: skip


def varied_prompts(count: int, seed: int = 0) -> list[str]:
    """``count`` different prompts, from two words to lists of tags. The first of a longer list are the same.

    >>> varied_prompts(2) == varied_prompts(5)[:2]
    True
    """
    chance = random.Random(f"varied prompts {seed}")
    subjects = list(_SUBJECTS)
    found: dict[str, None] = {}
    while len(found) < count:
        if len(found) % len(subjects) == 0:
            chance.shuffle(subjects)
        subject = subjects[len(found) % len(subjects)]
        place, style = chance.choice(_PLACES), chance.choice(_STYLES)
        tags = ", ".join(chance.sample(_QUALITIES, chance.randint(2, 5)))
        form = chance.choice((
            "{subject}", "{subject} {place}", "{style} of {subject}", "{subject} {place}, {style}",
            "{subject}, {style}, {tags}", "{style} of {subject} {place}, {tags}",
        ))  # fmt: skip
        found[form.format(subject=subject, place=place, style=style, tags=tags)] = None
    return list(found)


def varied_inputs(pipeline: Any, denoiser: nn.Module, count: int, seed: int = 0) -> list[str | int]:
    """At most ``count`` inputs of a pipeline: varied prompts, or class numbers spread over those that the denoiser's
    configuration tells of; none if it takes neither."""
    kind = input_argument(pipeline)
    if kind == "prompt":
        return list(varied_prompts(count, seed))
    if kind == "class_labels":
        known = _classes(denoiser)
        classes = list(range(known))
        random.Random(f"varied classes {seed}").shuffle(classes)
        return list(classes[:count])
    return []


def _classes(denoiser: nn.Module) -> int:
    """Number of classes in the denoiser's configuration, 0 if it tells of none."""
    config = getattr(denoiser, "config", {})
    for name in ("num_class_embeds", "num_embeds_ada_norm", "num_classes"):
        found = config.get(name) if hasattr(config, "get") else None
        if isinstance(found, int) and found > 0:
            return found
    return 0
