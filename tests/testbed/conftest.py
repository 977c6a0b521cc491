import pytest

from halludecode.testbed import write_dataset


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A small data set of every evaluation split, and of the training split."""
    root = tmp_path_factory.mktemp("testbed")
    return {
        split: write_dataset(root / f"testbed-{split}", split, 24)
        for split in ("iid", "broken", "dev-iid", "dev-broken", "train")
    }


@pytest.fixture(scope="session", params=("iid", "broken"))
def folder(request, folders):
    return folders[request.param]
