"""Settings for every test: property tests are reproducible and not timed, so that a busy machine fails none; files with
many slow tests begin first, so that two workers end together. And what the tests of the dataset builder share."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("vmas", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # stable: files stay whole and in their order


@pytest.fixture(scope="session")
def swept():
    """The tables of the sweeps from the committed runs, by target; each is put together once."""
    from vmas.experiments import registry, runner

    class Tables(dict):
        def __missing__(self, name: str):
            self[name] = runner.sweep_record(registry.get(name), "mini")
            return self[name]

    return Tables()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of small videos with a manifest, and the checkpoints that a build asks for (`dataset_files`)."""
    from dataset_files import checkpoints, folder_of_videos

    folder = tmp_path_factory.mktemp("videos")
    folder_of_videos(folder)
    checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def videos(root):
    """The rows of `root`'s manifest."""
    from vmas.dataset.manifest import read_manifest

    return read_manifest(root / "videos.csv")
