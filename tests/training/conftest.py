import pytest
from training_runs import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus, with a cache of its own."""
    directory = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTC_CACHE", str(directory / "cache"))
        yield write_corpus(directory)
