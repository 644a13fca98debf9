from tests.contracts.sampler_contract import SamplerContract


class TestNsga2(SamplerContract):
    sampler = "nsga2"
    num_trials = 32

    def test_generations_are_kept_in_the_trials(self, watched):
        generations = [max(t.system_attrs.values()) for t in watched.result.trials if t.system_attrs]
        assert max(generations) >= 1
