"""What every export target must do; a test class inherits `TargetContract` and names its target.

Targets that hold any net, activations included, inherit `GraphTargetContract`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.export import TARGETS, check_targets
from raysearch.export.extras import Extra
from raysearch.export.outputs import tensor_leaves
from raysearch.export.targets import ExportJob, Target, Verification, Written
from raysearch.export.verification.verify import compare, reference_outputs, within_tolerance
from raysearch.records import CostModel, Granularity, QuantizationPoint, QuantizerGroup, QuantizerSetup
from tests.support.export_cases import Case, case, forward_all
from tests.support.grouped_cases import grouped


@dataclass(frozen=True)
class Export:
    net: Case
    folder: Path
    written: Written
    verification: Verification


class TargetContract:
    target: ClassVar[Target]

    @classmethod
    def net(cls) -> Case:
        return case("twins", 6)

    @pytest.fixture(scope="class")
    @classmethod
    def export(cls, tmp_path_factory: pytest.TempPathFactory) -> Export:
        if missing := cls.target.extra.missing():
            pytest.skip(f"the extra '{cls.target.extra.name}' is not installed: {', '.join(missing)}")
        net, folder = cls.net(), tmp_path_factory.mktemp(cls.target.name)
        written = cls.target.write(ExportJob(net.model, folder))
        references = reference_outputs(net.stripped, [net.inputs(1), net.inputs(16)], forward_all)
        return Export(net, folder, written, Verification(net.stripped, references, forward_all))

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, export: Export) -> nn.Module:
        return cls.target.load(export.folder)

    def test_it_is_listed_under_its_name(self) -> None:
        assert TARGETS[self.target.name] is self.target

    def test_it_writes_its_files_and_no_others(self, export: Export) -> None:
        paths = [path for path in export.folder.rglob("*") if path.is_file()]
        names = {path.relative_to(export.folder).as_posix() for path in paths}
        assert names == set(self.target.written_files(export.folder)) >= set(self.target.files)
        if not self.target.folder:
            assert names == set(self.target.files)
        assert export.written.fixed_batch is None
        assert all(note.startswith(f"{self.target.name}: ") for note in export.written.notes)

    def test_what_is_loaded_computes_what_the_stripped_module_computes(
        self, export: Export, loaded: nn.Module
    ) -> None:
        references = export.verification.references
        check = compare(self.target.name, self.target.runtime(loaded), loaded, references, forward_all)
        assert check.num_samples == 17
        assert within_tolerance(check, references)
        if self.target.exact:
            assert check.max_abs_difference == 0.0
        inputs = export.net.inputs(3)
        with torch.no_grad():
            shapes = [leaf.shape for leaf in tensor_leaves(loaded(*inputs))]
            assert shapes == [leaf.shape for leaf in tensor_leaves(export.net.stripped(*inputs))]

    def test_its_check_passes_and_names_the_target_and_the_runtime(self, export: Export) -> None:
        verdict = self.target.check(export.folder, export.verification)
        assert {check.target for check in verdict.checks} == {self.target.name}
        assert all(check.runtime for check in verdict.checks)

    def test_its_check_refuses_files_of_other_weights(self, export: Export, tmp_path: Path) -> None:
        other = copy.deepcopy(export.net.stripped)
        model = replace(export.net.model, module=other)
        for weight in model.weights.values():
            weight.codes.neg_()
        self.target.write(ExportJob(model, tmp_path))
        with pytest.raises(ExportError, match=f"'{self.target.name}' differs from the stripped module"):
            self.target.check(tmp_path, export.verification)

    def test_files_that_are_cut_off_are_refused(self, export: Export, tmp_path: Path) -> None:
        for damaged in self.target.files:
            for name in self.target.files:
                data = (export.folder / name).read_bytes()
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(data[: len(data) // 2] if name == damaged else data)
            with pytest.raises(StorageError, match=damaged):
                self.target.load(tmp_path)

    def test_the_stripped_module_is_left_as_it_was(self, export: Export) -> None:
        fresh = self.net().stripped
        values = dict(fresh.named_buffers(remove_duplicate=False))
        left = dict(export.net.stripped.named_buffers(remove_duplicate=False))
        assert left.keys() == values.keys()
        assert all(torch.equal(left[name], value) for name, value in values.items())
        assert export.net.stripped.training == fresh.training

    def test_widths_it_does_not_hold_are_refused_with_the_quantizers_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Extra, "missing", lambda extra: [])
        narrow = copy.copy(self.target)
        vars(narrow)["capability"] = replace(self.target.capability, weights={8: 8})
        point = QuantizationPoint("fc.weight", "weight", (), (4, 4), Granularity.per_channel(0))
        setup = QuantizerSetup({"fc.weight": point}, {"fc": QuantizerGroup("fc", ("fc.weight",), (3, 8))})
        check_targets(setup, [self.target.name])
        with pytest.raises(
            ConfigError, match=rf"'{self.target.name}' does not hold 3 bits \(it holds 8\): 'fc.weight'"
        ):
            check_targets(setup, [self.target.name], {self.target.name: narrow})

    @pytest.fixture
    def without_packages(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        missing = list(self.target.extra.packages)
        if not missing:
            pytest.skip("it needs no packages")
        monkeypatch.setattr(Extra, "missing", lambda extra: missing)
        return missing

    def test_missing_packages_are_named_with_the_command(
        self, without_packages: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(
            ExportError,
            match=rf"'{self.target.name}' needs {', '.join(without_packages)}; install .*"
            rf"raysearch\[{self.target.extra.name}\]",
        ):
            self.net().export(tmp_path / "model", self.target.name)
        assert not (tmp_path / "model").exists()


class GraphTargetContract(TargetContract):
    @pytest.mark.slow
    @pytest.mark.parametrize("activations", [True, False])
    def test_weights_in_asymmetric_groups_arrive(self, tmp_path: Path, activations: bool) -> None:
        if missing := self.target.extra.missing():
            pytest.skip(f"the extra '{self.target.extra.name}' is not installed: {', '.join(missing)}")
        net = grouped("rows", None, 32, asymmetric=True, activations=activations)
        manifest = net.export(tmp_path, self.target.name, batches=[net.inputs(9)], forward=forward_all)
        greatest = manifest.checks[0].max_abs_difference
        assert greatest <= (0.0 if self.target.exact else 1e-5)
        assert manifest.weights_bytes == CostModel(net.setup).weight_bytes(net.assignment)

    @pytest.mark.slow
    def test_a_model_that_fixes_its_batch_is_told(self, export: Export, tmp_path: Path) -> None:
        net = case("fixed", batch=5)
        assert self.target.write(ExportJob(net.model, tmp_path)).fixed_batch == 5
