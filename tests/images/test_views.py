"""Batched views against torchvision, Pillow and lightly, operation by operation and as a whole."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import chisquare, kstest
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from nni_cssnas.config import ViewsConfig
from nni_cssnas.errors import ConfigError, CssnasError, DeviceError, ImagesError
from nni_cssnas.images import operations, tiles, views
from nni_cssnas.images.operations import ViewParameters
from nni_cssnas.images.views import BatchedViews, LightlyViews, make_views

MEAN = torch.tensor(views.MEAN).view(3, 1, 1)
STD = torch.tensor(views.STD).view(3, 1, 1)
OFF = {"cj_prob": 0, "random_gray_scale": 0, "gaussian_blur": 0, "hf_prob": 0, "min_scale": 1}
ALL = {"vf_prob": 0.3, "rr_prob": 0.4, "rr_degrees": 30.0, "cj_strength": 0.9}


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """uint8, (48, 3, 32, 32): noise would hide errors that smooth regions and edges show, and the other way round."""
    return torch.from_numpy(tiles.cut(32)[:48].copy())


@pytest.fixture(params=["sorted", "unsorted"])
def path(request, monkeypatch) -> str:
    """Both ways through the code: that of CPUs, and that of accelerators (run here on the CPU)."""
    if request.param == "unsorted":
        for module in (views, operations):
            monkeypatch.setattr(module, "sorts_operations", lambda device: False)
    return request.param


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(n: int, **values) -> ViewParameters:
    """Parameters of views of whole images of 32 x 32 pixels; ``values`` replaces some of them."""
    no, zero, edge = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long), torch.full((n,), 32)
    box = {"top": zero, "left": zero, "height": edge, "width": edge}
    return ViewParameters(**{**box, "horizontal": no, "vertical": no, **values})


def apply(images: torch.Tensor, parameters: ViewParameters, size: int = 32, **config) -> torch.Tensor:
    """Views without the normalisation, in [0, 1]."""
    return BatchedViews(ViewsConfig(**config), size).apply(images, parameters) * STD + MEAN


def parameters_of(transform: v2.Transform, inputs: list[torch.Tensor]) -> dict[str, object]:
    """What torchvision draws for a transform; the name was private before 0.21."""
    return getattr(transform, "make_params" if hasattr(transform, "make_params") else "_get_params")(inputs)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def unpil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


# ---- crop


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (32, 32, 48), (20, 31, 40), (75, 50, 32), (40, 120, 64)]
)
def test_crop_is_torchvisions_resized_crop(height, width, size, path):
    images = torch.randint(0, 256, (64, 3, height, width), dtype=torch.uint8, generator=generator())
    config = ViewsConfig(vf_prob=0.5, cj_prob=0, random_gray_scale=0, gaussian_blur=0)
    views_ = BatchedViews(config, size)
    parameters = views_.draw(64, generator(1), height, width)
    found = views_.apply(images, parameters) * STD + MEAN
    for i, image in enumerate(images):
        box = [int(getattr(parameters, name)[i]) for name in ("top", "left", "height", "width")]
        expected = tvf.resized_crop(image / 255, *box, [size, size], antialias=True)
        expected = tvf.horizontal_flip(expected) if parameters.horizontal[i] else expected
        expected = tvf.vertical_flip(expected) if parameters.vertical[i] else expected
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=0)
        # Pillow rounds to 8 bits after each of the two directions.
        rounded = unpil(tvf.resized_crop(pil(image), *box, [size, size]))
        rounded = rounded.flip(2) if parameters.horizontal[i] else rounded
        rounded = rounded.flip(1) if parameters.vertical[i] else rounded
        assert (found[i] - rounded).abs().max() <= 1.51 / 255


def test_crop_of_one_pixel():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    one = torch.tensor([1])
    found = apply(images, whole(1, top=torch.tensor([5]), left=torch.tensor([7]), height=one, width=one), size=8)
    torch.testing.assert_close(found, torch.full((1, 3, 8, 8), (5 * 16 + 7) / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (30, 100)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width):
    n = 4000
    parameters = BatchedViews(ViewsConfig(), 32).draw(n, generator(3), height, width)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(32, scale=(0.08, 1.0))
    reference = [parameters_of(crop, [torch.empty(3, height, width)]) for _ in range(n)]
    for name in ("top", "left", "height", "width"):
        values = getattr(parameters, name)
        assert kstest(values.numpy(), [params[name] for params in reference]).pvalue > 1e-3, name
    area = [params["height"] * params["width"] for params in reference]
    assert kstest((parameters.height * parameters.width).numpy(), area).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 200), (200, 8), (9, 11)])
def test_crop_boxes_lie_inside(height, width):
    drawn = BatchedViews(ViewsConfig(min_scale=0.02), 32).draw(5000, generator(), height, width)
    assert drawn.top.min() >= 0
    assert drawn.left.min() >= 0
    assert drawn.height.min() >= 1
    assert drawn.width.min() >= 1
    assert (drawn.top + drawn.height).max() <= height
    assert (drawn.left + drawn.width).max() <= width


@pytest.mark.parametrize(("height", "width"), [(8, 200), (200, 8)])
def test_crop_falls_back_to_the_centre_as_torchvision(height, width):
    # No box with an allowed aspect ratio has 90 % of the area: all ten tries fail.
    drawn = BatchedViews(ViewsConfig(min_scale=0.9), 32).draw(8, generator(), height, width)
    expected = parameters_of(v2.RandomResizedCrop(32, scale=(0.9, 1.0)), [torch.empty(3, height, width)])
    for name, value in expected.items():
        assert getattr(drawn, name).tolist() == [value] * 8


# ---- colour


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_jitter_is_torchvisions_in_every_order(photographs, order, path):
    n = len(photographs)
    factors = torch.rand(n, 4, generator=generator(sum(k * 4**i for i, k in enumerate(order)))) * 1.8
    factors[:, 3] = factors[:, 3] / 1.8 - 0.5
    jitter = torch.arange(n) % 5 > 0
    found = apply(photographs, whole(n, order=torch.tensor([order]).expand(n, 4), factors=factors, jitter=jitter))
    functions = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    for i, image in enumerate(photographs):
        expected = image / 255
        for k in order if jitter[i] else ():
            expected = functions[k](expected, float(factors[i, k]))
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shift", [-0.5, -0.37, -1 / 6, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_of_every_kind_of_colour(shift):
    """All corners, edges and greys of the colour cube, where branches of HSV meet."""
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).t().reshape(1, 3, 8, 8)
    expected = tvf.adjust_hue(colours, shift)
    found = colours.clone()
    operations.shift_hue(found, torch.tensor([6 * shift]))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_jitter_parameters_are_distributed_as_torchvisions():
    n = 4000
    config = ViewsConfig(cj_strength=1.0, cj_bright=1.3, cj_contrast=0.8, cj_sat=0.4, cj_hue=0.2, cj_prob=0.8)
    drawn = BatchedViews(config, 32).draw(n, generator(5), 32, 32)
    torch.manual_seed(0)
    reference = [parameters_of(v2.ColorJitter(1.3, 0.8, 0.4, 0.2), []) for _ in range(n)]
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        expected = [params[f"{name}_factor"] for params in reference]
        assert kstest(drawn.factors[:, k].numpy(), expected).pvalue > 1e-3, name
    code = (drawn.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(drawn.jitter.float().mean() - 0.8) < 0.03
    # Drawn independently of one another.
    columns = torch.cat([drawn.factors, drawn.order[:, :1], drawn.jitter.unsqueeze(1), drawn.top.unsqueeze(1)], 1)
    correlation = torch.corrcoef(columns.t()) - torch.eye(7)
    assert correlation.abs().max() < 0.07


def test_gray_is_torchvisions(photographs, path):
    gray = torch.arange(len(photographs)) % 3 == 0
    found = apply(photographs, whole(len(photographs), gray=gray))
    for i, image in enumerate(photographs):
        expected = tvf.rgb_to_grayscale(image / 255, 3) if gray[i] else image / 255
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


# ---- blur, rotation


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.41, 1.42, 1.9, 2.0, 4.7])
def test_blur_is_pillows(photographs, sigma, path):
    n = len(photographs)
    sigmas = torch.full((n,), sigma)
    sigmas[::4] = 0
    found = apply(photographs, whole(n, sigma=sigmas), sigmas=(0.1, 4.7))
    for i, image in enumerate(photographs):
        blurred = image / 255
        if sigmas[i]:
            blurred = unpil(pil(image).filter(ImageFilter.GaussianBlur(sigma)))
        # Pillow rounds to 8 bits after each of its six passes.
        assert (found[i] - blurred).abs().max() * 255 < 3.0
        assert (found[i] - blurred).abs().mean() * 255 < 0.8


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_of_large_views_is_the_same(sigma):
    """Above DENSE_BLUR pixels the band is summed instead of multiplied."""
    view = torch.rand(5, 3, 70, 70, generator=generator())
    sigmas = torch.full((5,), sigma)
    matrix = operations.blur_matrix(sigmas, 2, 70).unsqueeze(1)
    torch.testing.assert_close(operations.blur_views(view, sigmas, 2), matrix @ view @ matrix.mT, atol=1e-5, rtol=0)
    image = Image.fromarray((view[0] * 255).byte().permute(1, 2, 0).numpy())
    blurred = unpil(image.filter(ImageFilter.GaussianBlur(sigma)))
    assert (operations.blur_views(unpil(image)[None], sigmas[:1], 2)[0] - blurred).abs().max() * 255 < 3.0


def test_blur_has_the_variance_of_a_gaussian():
    """One bright pixel's second moment is sigma squared: what the box filters are chosen for."""
    for sigma in (0.3, 1.0, 2.0):
        image = torch.zeros(1, 3, 33, 33)
        image[:, :, 16, 16] = 1
        blurred = operations.blur_views(image, torch.tensor([sigma]), 3)[0, 0]
        assert blurred.sum() == pytest.approx(1, abs=1e-5)
        offsets = torch.arange(33) - 16.0
        assert float((blurred.sum(0) * offsets**2).sum()) == pytest.approx(sigma**2, rel=1e-3)


def test_blur_parameters():
    drawn = BatchedViews(ViewsConfig(gaussian_blur=0.5, sigmas=(0.2, 1.5)), 32).draw(4000, generator(), 32, 32)
    applied = drawn.sigma[drawn.sigma > 0]
    assert abs(len(applied) / 4000 - 0.5) < 0.03
    assert kstest(applied.numpy(), "uniform", args=(0.2, 1.3)).pvalue > 1e-3


def test_quarter_turn_is_lightlys(photographs, path):
    quarter = torch.arange(len(photographs)) % 2 == 0
    found = apply(photographs, whole(len(photographs), quarter=quarter))
    for i, image in enumerate(photographs):
        # lightly.transforms.rotation.RandomRotate calls this with a PIL image.
        expected = unpil(tvf.rotate(pil(image), 90)) if quarter[i] else image / 255
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [-170.0, -33.0, 0.0, 7.5, 45.0, 90.0, 180.0])
def test_rotation_is_pillows(photographs, angle):
    found = apply(photographs, whole(len(photographs), angle=torch.full((len(photographs),), angle)))
    expected = torch.stack([unpil(tvf.rotate(pil(image), angle)) for image in photographs])
    # Of pixels whose source lies on an edge between two, float32 may take the other one.
    different = ((found - expected).abs() > 1e-4).any(1).float().mean()
    assert different < 0.01


def test_rotation_parameters():
    drawn = BatchedViews(ViewsConfig(rr_prob=0.7, rr_degrees=(10.0, 40.0)), 32).draw(4000, generator(), 32, 32)
    applied = drawn.angle[drawn.angle != 0]
    assert abs(len(applied) / 4000 - 0.7) < 0.03
    assert kstest(applied.numpy(), "uniform", args=(10, 30)).pvalue > 1e-3
    drawn = BatchedViews(ViewsConfig(rr_prob=0.7, rr_degrees=25.0), 32).draw(4000, generator(), 32, 32)
    assert kstest(drawn.angle[drawn.angle != 0].numpy(), "uniform", args=(-25, 50)).pvalue > 1e-3
    drawn = BatchedViews(ViewsConfig(rr_prob=0.7), 32).draw(4000, generator(), 32, 32)
    assert abs(drawn.quarter.float().mean() - 0.7) < 0.03


# ---- all together


def chained(image: torch.Tensor, p: ViewParameters, i: int, size: int) -> torch.Tensor:
    """lightly's order of operations on one image, with torchvision's and Pillow's functions (float, no rounding)."""
    box = [int(value[i]) for value in (p.top, p.left, p.height, p.width)]
    x = tvf.resized_crop(image / 255, *box, [size, size], antialias=True)
    x = tvf.horizontal_flip(x) if p.horizontal[i] else x
    x = tvf.vertical_flip(x) if p.vertical[i] else x
    if p.quarter is not None and p.quarter[i]:
        x = x.rot90(1, (1, 2))
    if p.jitter[i]:
        functions = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
        for k in p.order[i].tolist():
            x = functions[k](x, float(p.factors[i, k]))
    x = tvf.rgb_to_grayscale(x, 3) if p.gray[i] else x
    if p.sigma[i] > 0:
        x = operations.blur_views(x[None], p.sigma[i : i + 1], 2)[0]
    return tvf.normalize(x, list(views.MEAN), list(views.STD))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (60, 45, 32)])
def test_whole_pipeline(height, width, size, path):
    images = torch.randint(0, 256, (200, 3, height // 4, width // 4), dtype=torch.uint8, generator=generator())
    images = tvf.resize(images, [height, width])
    batched = BatchedViews(ViewsConfig(vf_prob=0.2, rr_prob=0.3), size)
    first, second = batched(images, generator(7))
    parameters = batched.draw(400, generator(7), height, width)
    assert parameters.jitter.any()
    assert not parameters.jitter.all()
    found = torch.cat([first, second])
    expected = torch.stack([chained(images[i % 200], parameters, i, size) for i in range(400)])
    # Deviations of 1e-5 where a hue is all but undefined, divided by the normalisation's 0.22.
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)
    assert (found - expected).abs().mean() < 1e-5


def test_blocks_do_not_change_the_views(photographs, monkeypatch):
    batched = BatchedViews(ViewsConfig(), 32)
    whole_ = batched(photographs, generator())
    monkeypatch.setattr(views, "CPU_BLOCK_VIEWS", 5)
    for a, b in zip(whole_, batched(photographs, generator()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 24, 50])
def test_everything_off_gives_the_resized_image(photographs, size, path):
    first, second = make_views(ViewsConfig(**OFF), size)(photographs, generator())
    assert torch.equal(first, second)
    expected = tvf.normalize(
        tvf.resize(photographs / 255, [size, size], antialias=True), list(views.MEAN), list(views.STD)
    )
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)


def test_batched_and_lightly_views_are_alike(photographs):
    """The same first two moments in each channel, and the same spread of the images' means."""
    many = torch.from_numpy(tiles.cut(32)[:1500].copy())
    config = ViewsConfig(cj_strength=0.5)
    ours, _ = make_views(config, 32)(many, generator())
    theirs, _ = make_views(config.model_copy(update={"backend": "lightly"}), 32)(many, generator())
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=0.12, rtol=0)
    torch.testing.assert_close(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), atol=0.12, rtol=0)
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3))):
        assert kstest(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


# ---- the seam


@pytest.fixture(params=["batched", "lightly"])
def backend(request) -> str:
    return request.param


def test_views_follow_the_generator(photographs, backend):
    views_ = make_views(ViewsConfig(backend=backend, **ALL), 32)
    source = generator(11)
    first, second = views_(photographs, source)
    again = views_(photographs, generator(11))
    later = views_(photographs, source)
    assert first.shape == second.shape == (48, 3, 32, 32)
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, later[0])
    assert ((first - second).abs().amax((1, 2, 3)) > 0.01).all()
    assert first.isfinite().all()


def test_global_randomness_is_untouched(photographs, backend):
    views_ = make_views(ViewsConfig(backend=backend, **ALL), 32)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    views_(photographs, generator())
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
    assert random.random() == expected[2]


def test_images_are_left_alone(photographs, backend):
    before = photographs.clone()
    make_views(ViewsConfig(backend=backend, **ALL), 32)(photographs, generator())
    assert torch.equal(photographs, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_channels_last(photographs, dtype, backend):
    config = ViewsConfig(backend=backend)
    exact = make_views(config, 32)(photographs, generator())
    rounded = make_views(config, 32, dtype=dtype, channels_last=True)(photographs, generator())
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == dtype
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.to(dtype), b)


def test_size_of_the_views(photographs, backend):
    assert make_views(ViewsConfig(backend=backend, input_size=24), 32)(photographs, generator())[0].shape[-1] == 24
    assert make_views(ViewsConfig(backend=backend), 40)(photographs, generator())[0].shape[-1] == 40


def test_switching_one_operation_off_leaves_the_others():
    on = BatchedViews(ViewsConfig(), 32).draw(64, generator(), 32, 32)
    off = BatchedViews(ViewsConfig(cj_prob=0, gaussian_blur=0), 32).draw(64, generator(), 32, 32)
    assert off.order is off.factors is off.jitter is off.sigma is None
    assert torch.equal(on.top, off.top)
    assert torch.equal(on.gray, off.gray)


@pytest.mark.parametrize("batch_size", [1, 2, 129])
def test_any_batch_size(photographs, batch_size, path):
    images = photographs.repeat(3, 1, 1, 1)[:batch_size]
    first, second = make_views(ViewsConfig(), 32)(images, generator())
    assert len(first) == len(second) == batch_size


def test_certain_operations(photographs, path):
    """Probability 1 of everything: no view is left out, no part of a block is empty."""
    config = ViewsConfig(cj_prob=1, random_gray_scale=1, gaussian_blur=1, hf_prob=1, vf_prob=1, rr_prob=1)
    first, _ = make_views(config, 32)(photographs, generator())
    plain = first * STD + MEAN
    torch.testing.assert_close(plain[:, 0], plain[:, 1], atol=1e-5, rtol=0)


def test_constants_are_lightlys():
    from lightly.transforms.utils import IMAGENET_NORMALIZE

    assert list(views.MEAN) == IMAGENET_NORMALIZE["mean"]
    assert list(views.STD) == IMAGENET_NORMALIZE["std"]


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)],
)
def test_wrong_images_are_refused(images, backend):
    with pytest.raises(ImagesError, match=r"must be torch\.uint8 of shape \(batch_size, 3"):
        make_views(ViewsConfig(backend=backend), 32)(images, generator())


def test_wrong_arguments_are_refused(photographs):
    with pytest.raises(ConfigError, match="rr_degrees is -5"):
        make_views(ViewsConfig(rr_prob=0.5, rr_degrees=-5.0), 32)
    with pytest.raises(ImagesError, match="48 images but the parameters of 3 views"):
        BatchedViews(ViewsConfig(), 32).apply(photographs, whole(3))
    with pytest.raises(DeviceError, match=r"make it with torch\.Generator\('meta'\)"):
        make_views(ViewsConfig(), 32)(photographs.to("meta"), generator())
    assert issubclass(DeviceError, CssnasError)


def test_reprs_say_what_they_are():
    assert "size=32" in repr(BatchedViews(ViewsConfig(), 32))
    assert "cj_prob=0.3" in repr(LightlyViews(ViewsConfig(cj_prob=0.3), 32))
