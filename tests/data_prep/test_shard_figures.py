import numpy as np
from PIL import Image

FIGURES = ("overview.png", "motifs.png", "sample.png")


def test_figures_are_drawn(atlas, inspections):
    for name in FIGURES:
        with Image.open(inspections(atlas.shards).folder / name) as image:
            pixels = np.asarray(image.convert("RGB")).astype(float)
        height, width, _ = pixels.shape
        assert 600 < width < 4000
        assert 300 < height < 4000
        assert pixels.std() > 15
        assert 0.02 < (pixels < 250).any(axis=2).mean() < 0.99
        assert (pixels[:3] == 255).all()  # nothing runs over the edge
        assert (pixels[:, -2:] == 255).all()
