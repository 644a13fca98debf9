"""Targets say what they do not hold before anything is computed."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.errors import ConfigError
from raysearch.export import TARGETS, check_targets
from raysearch.export.extras import Extra
from raysearch.export.onnx_qdq.storage import choose_containers
from raysearch.export.targets.capability import Capability
from raysearch.export.targets.onnx import OnnxTarget
from raysearch.export.targets.openvino import OpenVinoTarget
from raysearch.export.targets.pt2 import Pt2Target
from raysearch.export.targets.registry import choose_targets
from raysearch.placement import place_quantizers
from raysearch.records import Granularity, QuantizationPoint, QuantizerGroup, QuantizerSetup, QuantizerSpec


def setup_of(widths, spec=None, axis=0):
    weight = QuantizationPoint("fc.weight", "weight", (), (4, 4), Granularity(axis), 16, "fc.input", spec)
    given = QuantizationPoint("fc.input", "activation", (), (4,))
    groups = {
        "fc.weight": QuantizerGroup("fc.weight", ("fc.weight",), widths),
        "fc.input": QuantizerGroup("fc.input", ("fc.input",), (4, 8)),
    }
    return QuantizerSetup({"fc.weight": weight, "fc.input": given}, groups)


def test_every_graph_that_can_be_written_here_holds_all_widths():
    # The extra `openvino` is not part of `dev`.
    graphs = [target for target in TARGETS.values() if target.capability.activations]
    installed = [target.name for target in graphs if not target.extra.missing()]
    assert {"packed", "onnx", "pt2"} <= set(installed)
    check_targets(setup_of((2, 3, 4, 5, 6, 7, 8), QuantizerSpec("asymmetric")), installed)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"packed", "pt2", "gguf"}))
def test_minima_are_refused_by_name_where_a_file_has_no_place_for_them(name):
    weight = QuantizationPoint("fc.weight", "weight", (), (4, 256), Granularity(0), 1024)
    setup = QuantizerSetup({weight.id: weight}, {"fc": QuantizerGroup("fc", (weight.id,), ("q4_k", 8))})
    words = r"weights with minima \(it holds symmetric"
    (statement,) = [said for said in TARGETS[name].capability.refusals(setup) if "minima" in said]
    assert re.match(words, statement)


class Chip(Pt2Target):
    name = "chip"


@pytest.mark.parametrize(
    ("limits", "setup", "text"),
    [
        ({"weights": {4: 4, 8: 8}}, setup_of((2, 3, 8)), r"2, 3 bits \(it holds 4, 8\): 'fc.weight'"),
        ({"activations": (8,)}, setup_of((8,)), r"4 bits \(it holds 8\): 'fc.input'"),
        ({"weight_modes": ("symmetric",)}, setup_of((8,), QuantizerSpec("asymmetric")), "asymmetric weights"),
        ({"weight_granularity": ("per_channel",)}, setup_of((8,), axis=None), "per_tensor scales"),
        ({"weight_granularity": ("per_channel",)}, setup_of(("4g2", 8)), "per_group scales .*: 'fc.weight'"),
        ({"weight_modes": ("symmetric",)}, setup_of((4, "4a")), "asymmetric weights"),
    ],
)
def test_what_a_target_does_not_hold_is_named(limits, setup, text, monkeypatch):
    limited = replace(Capability({8: 8, 4: 4, 3: 3, 2: 2}), **limits)
    monkeypatch.setattr(Chip, "capability", limited)
    with pytest.raises(ConfigError, match=text):
        check_targets(setup, ["chip"], {"chip": Chip()})


def test_a_target_whose_packages_are_missing_and_one_that_is_unknown_are_named(monkeypatch):
    monkeypatch.setattr(Chip, "extra", Extra("x", ("no_such_package",)))
    with pytest.raises(ConfigError, match=r"'chip', which needs no_such_package; .*raysearch\[x\]"):
        check_targets(setup_of((8,)), ["chip"], {"chip": Chip()})
    with pytest.raises(ConfigError, match="names 'tflite'; known targets: chip"):
        check_targets(setup_of((8,)), ["tflite"], {"chip": Chip()})


def test_the_stated_container_is_the_one_that_large_weights_get():
    for target in (OnnxTarget, OpenVinoTarget):
        for width, stored in target.capability.weights.items():
            chosen = choose_containers({"w": (10**6, width)}, streams=target.for_onnxruntime)
            assert chosen["w"].num_bits == stored


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("ignored", [(), ("weight_hr_l0",)])
def test_onnx_does_not_hold_an_lstm_with_a_projection(ignored):
    settings = PlacementConfig(ignored_scopes=ignored)
    setup = place_quantizers(nn.LSTM(3, 4, proj_size=2), (torch.zeros(5, 1, 3),), settings)
    with pytest.raises(ConfigError, match=r"'onnx' does not hold the projection of an LSTM.*'weight_hr_l0'"):
        check_targets(setup, ["onnx"])
    check_targets(setup, ["packed", "pt2"])
    targets, notes = choose_targets(None, setup)
    assert "onnx" not in [target.name for target in targets]
    assert any("onnx: left out" in note and "weight_hr_l0" in note for note in notes)
