import pytest

from raysearch.errors import StorageError
from raysearch.export.onnx_qdq.session import OnnxModel


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"cannot load .*model\.onnx"):
        OnnxModel(tmp_path / "model.onnx")
