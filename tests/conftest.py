"""Shape checks on, uninitialised memory poisoned, one thread, no deadlines: what every test runs under."""

from jaxtyping import install_import_hook

# Before anything of mixlab is imported; production code runs unchecked.
install_import_hook(["mixlab.parts", "mixlab.model"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("without-deadline", deadline=None)  # a slow machine is no failure
settings.load_profile("without-deadline")


@pytest.fixture(autouse=True)
def _poisoned_and_seeded():
    """torch.empty gives NaN, so that a value nobody wrote cannot pass for zero; seeds are fixed."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
