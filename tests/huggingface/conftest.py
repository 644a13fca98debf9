import pytest

from tests.support.model_directories import save_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A directory that no test changes."""
    return save_llama(tmp_path_factory.mktemp("llama"))
