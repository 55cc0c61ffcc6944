"""The drawing is a valid picture of blocks, their edges and their layers."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.conftest import call_of, small_unet

from qua2sedimo.denoisers import trace
from qua2sedimo.denoisers.drawing import block_edges, drawing

SVG = "{http://www.w3.org/2000/svg}"


def test_every_block_is_a_link_to_a_panel_with_all_its_layers() -> None:
    model = small_unet()
    graph = trace(model, (), call_of(model), parts=True)
    root = ElementTree.fromstring(drawing(graph))
    links = {link.attrib["href"].removeprefix("#") for link in root.iter(f"{SVG}a")}
    panels = {panel.attrib["id"]: " ".join(panel.itertext()) for panel in root.iter(f"{SVG}g")}
    assert links == set(panels)
    assert len(links) == len({unit.block for unit in graph.layers.values()})
    assert all(any(name in text for text in panels.values()) for name in graph.layers)


def test_blocks_are_joined_by_the_data_flow_with_skips_from_the_layer_they_come_from() -> None:
    model = small_unet()
    edges = block_edges(trace(model, (), call_of(model), parts=True))
    assert ("down 0 resnet 0", "up 1 resnet 0") in edges
    assert ("input", "up 1 resnet 1") in edges
    assert ("down 0 resnet 0", "output") not in edges
