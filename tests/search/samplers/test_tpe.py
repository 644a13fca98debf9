from tests.contracts.sampler_contract import SamplerContract


class TestTpe(SamplerContract):
    sampler = "tpe"
