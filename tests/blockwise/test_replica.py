"""A replica of one part at a time."""

import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.blockwise import BlockFiles, BlockReplica, pass_blocks, without_weights
from raysearch.cluster.pool import LocalPool
from raysearch.errors import DamagedFileError
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.evaluation.half_precision import in_float32
from raysearch.evaluation.model.copies import private_copy
from tests.blockwise.test_chain import SAMPLES, Net, chain_of


def test_half_precision_is_stored_as_it_is_and_computed_in_float32(tmp_path):
    net = Net()
    chain = chain_of(net)
    net.bfloat16()
    files = BlockFiles(Storage(tmp_path))
    files.write_weights(net)
    assert files.read_weight("blocks.1.mix.weight").dtype == torch.bfloat16
    shards = {DataSet.CALIBRATION: [SAMPLES, SAMPLES[:2]]}
    model, _ = in_float32(without_weights(net), {})
    replica = BlockReplica(model, default_forward, shards, Divergence("mse"), chain=chain, files=files)
    pass_blocks(LocalPool(replica), chain, files, DataSet.CALIBRATION, 2)
    wide, _ = in_float32(private_copy(net), {})
    expected = Replica(wide, default_forward, shards, Divergence("mse"))
    for index in range(2):
        outputs = replica.float_outputs(DataSet.CALIBRATION, index)
        assert torch.equal(outputs, expected.float_outputs(DataSet.CALIBRATION, index))
    state = tmp_path / "states" / "calibration" / "1" / "0.safetensors"
    data = bytearray(state.read_bytes())
    data[-30] ^= 1
    state.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"0.safetensors is damaged.* go on with --resume"):
        files.read_state(DataSet.CALIBRATION, 1, 0)
    assert torch.equal(replica.weight("blocks.2.mix.weight"), wide.get_parameter("blocks.2.mix.weight"))
