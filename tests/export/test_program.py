import io
import json
import zipfile

import pytest
import torch
from torch import nn

from raysearch.errors import ExportError, StorageError
from raysearch.evaluation.quiet import quiet
from raysearch.export import archive, load_model
from raysearch.export.open_dims import widen
from raysearch.export.program import load_program, tensor_slots
from raysearch.export.targets.packed import write_packed
from raysearch.records import QuantizerSetup
from tests.support.export_cases import case

MODEL = "archive/models/model.json"


def edited(folder, changes=None, extra=None):
    """The graph file with members replaced or added."""
    sink = io.BytesIO()
    with (
        zipfile.ZipFile(folder / "architecture.pt2") as source,
        zipfile.ZipFile(sink, "w") as target,
    ):
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename in (changes or {}):
                data = changes[entry.filename](data)
            target.writestr(entry.filename, data)
        for name, data in (extra or {}).items():
            target.writestr(name, data)
    return sink.getvalue()


def graph(change):
    def edit(data):
        value = json.loads(data)
        change(value)
        return json.dumps(value)

    return edit


def first_node(value):
    return value["graph_module"]["graph"]["nodes"][0]


@pytest.mark.parametrize(
    "operation",
    [
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.mylib.run.default",
        "torch.ops.aten.__class__.__base__",
        "#ext:x",
        "os.system",
        None,
    ],
)
def test_a_foreign_operation_is_refused(exported, operation):
    change = graph(lambda value: first_node(value).update(target=operation))
    with pytest.raises(StorageError, match="holds the operation"):
        load_program(edited(exported, {MODEL: change}), "model.pt2")


@pytest.mark.parametrize("size", ["__import__('os').system('x')", "open('x')", "().x", "A.b", "A" * 99 + "!"])
def test_a_size_that_would_run_code_is_refused(exported, size):
    change = graph(lambda value: value["graph_module"].update(more={"as_expr": {"expr_str": size}}))
    with pytest.raises(StorageError, match="holds the size"):
        load_program(edited(exported, {MODEL: change}), "model.pt2")


def test_guards_are_refused(exported):
    change = graph(lambda value: value.update(guards_code=["print('x')"]))
    with pytest.raises(StorageError, match="code of guards"):
        load_program(edited(exported, {MODEL: change}), "model.pt2")


@pytest.mark.parametrize(
    "name",
    ["data/weights/model.pt", "data/constants/custom_obj_0", "data/aotinductor/x.so", "models/other.json"],
)
def test_members_that_torch_would_unpickle_or_run_are_refused(exported, name):
    with pytest.raises(StorageError, match=f"the member 'archive/{name}'"):
        load_program(edited(exported, extra={f"archive/{name}": b"x"}), "model.pt2")


def test_example_inputs_and_pickled_constants_are_refused(exported):
    sample = "archive/data/sample_inputs/model.pt"
    with pytest.raises(StorageError, match="sample_inputs"):
        load_program(edited(exported, {sample: lambda data: b"x"}), "model.pt2")
    constants = "archive/data/constants/model_constants_config.json"
    pickled = {"config": {"c": {"path_name": "tensor_0", "use_pickle": True, "tensor_meta": None}}}
    with pytest.raises(StorageError, match="pickled constant 'tensor_0'"):
        load_program(edited(exported, {constants: lambda data: json.dumps(pickled)}), "model.pt2")


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04"])
def test_what_is_no_program_is_refused(data):
    with pytest.raises(StorageError, match=r"model\.pt2 cannot be read by torch"):
        load_program(data, "model.pt2")


def test_every_place_of_a_tensor_is_found_once_per_module():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    model["c"].weight = shared.weight
    slots = {slot: name for slot, (name, _) in tensor_slots(model, {}).items()}
    assert slots == {"a.weight": "a.weight", "a.bias": "a.bias", "c.weight": "a.weight", "c.bias": "c.bias"}


def test_a_batch_of_one_is_doubled_and_others_stay():
    one, other = torch.zeros(1, 3), torch.zeros(4, 3)
    widened, batch = widen((one, {"k": other}, None))
    assert (batch, widened[0].shape, widened[1]["k"].shape) == (2, (2, 3), (4, 3))
    assert widen((other,))[1] == 4
    with pytest.raises(ExportError, match="no tensor with a dimension"):
        widen((3,))


def test_a_model_that_cannot_be_captured_is_named(tmp_path):
    net = case("waves")
    original = type(net.stripped).forward

    class Branching(type(net.stripped)):
        def forward(self, x):
            return original(self, x) if x.sum() > 0 else original(self, -x)

    net.stripped.__class__ = Branching
    with pytest.raises(ExportError, match="Branching cannot be captured for the target 'packed'"):
        write_packed(net.stripped, net.setup, net.example, tmp_path)


HOSTILE = [
    "_operator.call", "_operator.attrgetter", "_operator.methodcaller", "math.factorial",
    "torch.ops.aten.from_file.default", "torch.ops.higher_order.flat_apply",
    "torch.ops.higher_order.aoti_call_delegate",
]  # fmt: skip


@pytest.mark.parametrize("operation", HOSTILE)
def test_operations_of_torch_that_reach_files_or_call_anything_are_refused(exported, operation):
    change = graph(lambda value: first_node(value).update(target=operation))
    with pytest.raises(StorageError, match="holds the operation"):
        load_program(edited(exported, {MODEL: change}), "model.pt2")


def test_a_tower_of_powers_and_a_module_to_import_are_refused(exported):
    tower = "Pow(Integer(9), Pow(Integer(9), Integer(99)))"
    change = graph(lambda value: value["graph_module"].update(more={"as_expr": {"expr_str": tower}}))
    with pytest.raises(StorageError, match="holds the size"):
        load_program(edited(exported, {MODEL: change}), "model.pt2")
    tree = json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])

    def foreign(value):
        value["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = tree

    with pytest.raises(StorageError, match=r"arguments of the type 'collections\.defaultdict'"):
        load_program(edited(exported, {MODEL: graph(foreign)}), "model.pt2")


def test_zeros_of_a_huge_size_and_a_bomb_are_refused_before_memory_is_taken(exported):
    meta = {"dtype": 7, "sizes": [{"as_int": 1 << 40}], "device": {"type": "cpu", "index": None}}
    payload = {"config": {"c": {"path_name": "tensor_0", "use_pickle": False, "tensor_meta": meta}}}
    constants = "archive/data/constants/model_constants_config.json"
    data = edited(
        exported, {constants: lambda data: json.dumps(payload)}, {"archive/data/constants/tensor_0": b""}
    )
    with pytest.raises(StorageError, match=r"'tensor_0' of shape \[1099511627776\] in 0 bytes"):
        load_program(data, "model.pt2")
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/constants/tensor_0", bytes(1 << 24))
    with pytest.raises(StorageError, match="16777216 bytes as 'data/constants/tensor_0'"):
        load_program(sink.getvalue(), "model.pt2")


def test_torch_itself_reads_the_compressed_file(exported):
    with quiet():
        torch.export.load(exported / "architecture.pt2")
    assert (exported / "architecture.pt2").stat().st_size < 10_000


REFUSED = ("from_file", "_print", "record_stream", "set_", "set_data", "resize")


def test_every_operation_of_aten_is_taken_but_those_that_reach_beyond_the_graph():
    taken = refused = 0
    for registered in torch._C._dispatch_get_all_op_names():
        library, _, operation = registered.partition("::")
        if library != "aten":
            continue
        name, _, overload = operation.partition(".")
        text = f"torch.ops.aten.{name}.{overload or 'default'}"
        is_refused = name in REFUSED or name.startswith("resize")
        assert archive.is_operation(text) != is_refused, text
        taken += not is_refused
        refused += is_refused
    assert taken > 2000
    assert 0 < refused < 20


class Masks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        low, high = x > -0.5, x < 0.5
        some = (low & high) | (x > 2) ^ low
        shifted = (some.long() << 2) >> 1
        return self.first(x).masked_fill(~some, 0.0) + shifted


def test_a_graph_that_joins_masks_loads_again(tmp_path):
    model, x = Masks().eval(), torch.randn(5, 4)
    write_packed(model, QuantizerSetup({}, {}), (x,), tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))
