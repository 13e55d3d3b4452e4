"""Every annotated shape of the packages is checked at run time while tests run.

A test of what a function itself says to wrong shapes or types carries ``@pytest.mark.unchecked``: the check would
answer first.
"""

import pytest
from jaxtyping import config, install_import_hook

install_import_hook(
    ["contrastive_core", "cl_foundations", "cl_graphtext", "cl_medical", "cl_retrieval", "cl_signals", "cl_video3d"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int serves as a float
)


def pytest_configure(config):
    """Warnings of our own are failures; named here because naming them imports the package."""
    config.addinivalue_line("filterwarnings", "error::contrastive_core.errors.ContrastiveWarning")


@pytest.fixture(autouse=True)
def _checked_shapes(request):
    config.update("jaxtyping_disable", request.node.get_closest_marker("unchecked") is not None)
    yield
    config.update("jaxtyping_disable", False)
