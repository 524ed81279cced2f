"""What several test files ask for."""
import pytest
import torch
from smoke_tier import smoke  # noqa: F401 a fixture

pytest.register_assert_rewrite("attention_cases", "fused_cases")  # so that what fails there shows its values


@pytest.fixture(scope="module")
def one_thread():
    "Tensors of tests are slower with more, members of a run train side by side as it is, workers and the command line have one, and what they set is undone."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
