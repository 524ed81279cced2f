"""What several test files ask for."""
import pytest
import torch
from project import ROOT
from smoke_tier import smoke  # noqa: F401 a fixture

pytest.register_assert_rewrite("attention_cases", "fused_cases")  # so that what fails there shows its values


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Tensors of tests are slower with more, above all where several processes share the tests; members of a run train side by side as it is, workers and the command line have one, and what they set is undone."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "When several processes share the tests, a file stays together, and so do all that need the smoke tier, which is made once."
    from xdist.scheduler import LoadScopeScheduling
    with_smoke = {path.name for path in (ROOT / "tests").glob("test_*.py") if "smoke)" in path.read_text()}

    class ByFile(LoadScopeScheduling):  # the largest first
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return "smoke" if file in with_smoke else file

    return ByFile(config, log)
