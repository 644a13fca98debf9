from tests.contracts.sampler_contract import SamplerContract


class TestRandom(SamplerContract):
    sampler = "random"
