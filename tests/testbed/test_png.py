import io

import numpy as np
import pytest
from PIL import Image

from halludecode.testbed.png import encode


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (120, 120, 3), (200, 150, 3)])
def test_pixels_survive(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(encode(image))) as picture:
        picture.load()
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), image)
