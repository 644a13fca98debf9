from tests.contracts.sampler_contract import SamplerContract


class TestThompson(SamplerContract):
    sampler = "auto"
    source = "thompson"
