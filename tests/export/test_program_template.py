"""A captured program with the levels of another stripping is the program that a capture of it would give."""

from dataclasses import replace

import pytest

from raysearch.export.program import capture_program, program_bytes, tensor_slots
from raysearch.export.program_template import ProgramTemplate
from tests.support.export_cases import case, forward_all
from tests.support.grouped_cases import grouped


def captured(net):
    slots = tensor_slots(net.stripped, net.model.weights)
    return capture_program(net.stripped, slots, net.example), slots


def template_of(net):
    program, slots = captured(net)
    template = ProgramTemplate.of(program, net.stripped, slots)
    # The file of the first export was written before the second one takes the program.
    program_bytes(program.program)
    return template


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "tied", "waves"])
def test_a_filled_program_is_a_fresh_one(name):
    template, net = template_of(case(name, 2)), case(name)
    fresh, slots = captured(net)
    filled = template.filled(net.stripped, slots)
    assert filled.fixed_batch == fresh.fixed_batch
    assert program_bytes(filled.program) == program_bytes(fresh.program)


@pytest.mark.slow
def test_a_file_that_is_wrong_with_an_earlier_program_is_written_with_one_of_its_own(tmp_path):
    template, net = template_of(case("residual", 2)), case("residual", 8)
    graphs = {"packed": replace(template, limits={})}
    manifest = net.export(tmp_path, "packed", graphs=graphs, batches=[net.inputs(9)], forward=forward_all)
    assert manifest.checks[0].max_abs_difference == 0.0
    assert graphs["packed"].limits


def test_other_groups_are_captured_anew():
    template, net = template_of(grouped("rows", 4, 32)), grouped("rows", 4, 16)
    assert template.filled(net.stripped, tensor_slots(net.stripped, net.model.weights)) is None
