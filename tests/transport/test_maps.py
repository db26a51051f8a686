"""One contract for all maps."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import zuko
from pydantic import ValidationError
from torch import Tensor, nn

from selfcal.config.calibration import WITHOUT_INVERSE, MapConfig
from selfcal.config.evaluation import FAMILIES, MapFamily
from selfcal.errors import ConfigError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.choice import BUILDERS as FAMILY_BUILDERS
from selfcal.transport.choice import build_maps
from selfcal.transport.flow_map import FlowMap, ZukoAutoregressive, ZukoCouplings
from selfcal.transport.latent_map import LatentMap, moved_log_probability
from selfcal.transport.maps import CalibrationMap, InvertibleMap


def of_config(**settings: Any) -> Callable[[], CalibrationMap]:
    return lambda: build_maps(MapConfig(**settings), 3, 2).of(0)


def example_map(coordinates: int, conditions: int, config: MapConfig) -> CalibrationMap:
    names = runpy.run_path(str(Path(__file__).parents[2] / "docs/examples/stretch_map.py"))
    built = names["StretchMap"](coordinates, conditions, config)
    assert isinstance(built, InvertibleMap)
    return built


BUILDERS: dict[str, Callable[[], CalibrationMap]] = {
    **{family: of_config(family=family) for family in FAMILY_BUILDERS},
    "affine": lambda: AffineMap(3, 2, 0.3),
    "autoregressive flow by zuko": of_config(family="flow", structure="autoregressive"),
    "coupling flow by nflows": of_config(family="flow", library="nflows"),
    "switch, autoregressive": of_config(family="switch", structure="autoregressive"),
    "example of the documentation": lambda: example_map(3, 2, MapConfig()),
    "latent": lambda: LatentMap(3, 2, MapConfig(), rank=2),
}
INVERTIBLE = [name for name, build in BUILDERS.items() if isinstance(build(), InvertibleMap)]


def test_which_families_promise_an_inverse() -> None:
    assert set(BUILDERS) - set(INVERTIBLE) == {*WITHOUT_INVERSE, "latent"}


def test_every_family_of_the_configuration_can_be_built_and_judged() -> None:
    assert set(FAMILY_BUILDERS) == set(get_args(MapFamily)) <= set(FAMILIES)


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    # Some points lie outside the support of the splines.
    return 2.0 * torch.randn(300, 3, **draw), torch.randn(300, 2, **draw)


def perturbed(name: str) -> CalibrationMap:
    built = BUILDERS[name]().double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return built


@pytest.mark.parametrize("name", BUILDERS)
def test_new_map_is_the_identity(name: str, points: tuple[Tensor, Tensor]) -> None:
    built = BUILDERS[name]().double()
    assert (built(*points) - points[0]).abs().max() <= 1e-6
    assert built.displacement(*points).max() <= 1e-10
    assert built.stiffness() == 0


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse_undoes_the_map(name: str, points: tuple[Tensor, Tensor]) -> None:
    built = perturbed(name)
    assert isinstance(built, InvertibleMap)
    coordinates, conditions = points
    moved = built(coordinates, conditions)
    assert (built.inverse(moved, conditions) - coordinates).abs().max() <= 1e-8
    if name != "identity":
        assert (moved - coordinates).abs().mean() > 0.01


def zukos_own(splines: ZukoCouplings | ZukoAutoregressive, bins: int) -> list[nn.Module]:
    """The same layers with zuko's splines instead of ours, and the same networks."""
    own = copy.deepcopy(splines.layers)
    for layer in own:
        layer.univariate, layer.shapes = (
            zuko.transforms.MonotonicRQSTransform,
            [(bins,), (bins,), (bins - 1,)],
        )  # type: ignore[assignment]
    return list(own)


@pytest.mark.parametrize("name", ["flow", "autoregressive flow by zuko"])
def test_splines_are_inverted_as_zuko_does(name: str, points: tuple[Tensor, Tensor]) -> None:
    """The same numbers and gradients, with fewer evaluations of the networks."""
    built = perturbed(name)
    assert isinstance(built, FlowMap)
    splines = built.couplings
    assert isinstance(splines, ZukoCouplings | ZukoAutoregressive)
    x, c = points
    theirs, their_log_det = x, x.new_zeros(len(x))
    layers = zukos_own(splines, bins=8)
    for layer in reversed(layers):
        theirs, log_det = layer(c).inv.call_and_ladj(theirs)
        their_log_det = their_log_det + log_det
    ours, our_log_det = splines.inverse_and_log_det(x, c)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
    assert torch.allclose(our_log_det, their_log_det, rtol=0, atol=1e-13)
    (ours.square().sum() + our_log_det.sum()).backward()  # type: ignore[no-untyped-call]
    (theirs.square().sum() + their_log_det.sum()).backward()  # type: ignore[no-untyped-call]
    other = [p.grad for layer in layers for p in layer.parameters()]
    for mine, p in zip(other, splines.parameters(), strict=True):
        assert mine is not None
        assert p.grad is not None
        assert torch.allclose(mine, p.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "asked"), [("flow", 3), ("autoregressive flow by zuko", 6)])
def test_an_inverse_asks_the_networks_once_for_each_pass(
    name: str, asked: int, points: tuple[Tensor, Tensor]
) -> None:
    built = perturbed(name)
    assert isinstance(built, FlowMap)
    evaluations = []
    for layer in built.couplings.layers:  # type: ignore[union-attr]
        layer.hyper.register_forward_hook(lambda *given: evaluations.append(1))  # type: ignore[operator,union-attr]
    built.couplings.inverse_and_log_det(*points)
    assert len(evaluations) == asked


@pytest.mark.parametrize("name", INVERTIBLE)
def test_log_determinant_is_that_of_the_jacobian(name: str, points: tuple[Tensor, Tensor]) -> None:
    built = perturbed(name)
    assert isinstance(built, InvertibleMap)
    coordinates, conditions = points[0][:20], points[1][:20]
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda u, i=i: built(u[None], conditions[i : i + 1])[0], row)
            for i, row in enumerate(coordinates)
        ]
    )
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert (built.log_abs_det_jacobian(coordinates, conditions) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", BUILDERS)
def test_a_jet_does_not_depend_on_the_others(name: str, points: tuple[Tensor, Tensor]) -> None:
    built = perturbed(name)
    alone = built(points[0][7:8], points[1][7:8])
    assert torch.allclose(built(*points)[7:8], alone, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "identity"])
def test_a_stored_map_gives_the_same_numbers(
    name: str, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    built = perturbed(name)
    write_arrays(tmp_path / "map.safetensors", {n: v.numpy() for n, v in built.state_dict().items()})
    again = BUILDERS[name]().double()
    stored = read_arrays(tmp_path / "map.safetensors")
    again.load_state_dict({n: torch.from_numpy(v) for n, v in stored.items()})
    assert torch.equal(built(*points), again(*points))


def test_the_latent_map_moves_jets_in_few_directions_and_scores_through_the_head() -> None:
    # Fresh weights come from torch's global generator, whose state depends on the tests before.
    torch.manual_seed(2)
    transport = LatentMap(128, 2, MapConfig(), rank=4)
    head = torch.nn.Linear(128, 4).double()
    draw = {"generator": torch.Generator().manual_seed(1), "dtype": torch.float64}
    latent, conditions = torch.randn(50, 128, **draw), torch.randn(50, 2, **draw)
    before = torch.log_softmax(head(latent), dim=1)
    assert torch.equal(moved_log_probability(transport, head, latent, conditions), before)
    with torch.no_grad():
        for parameter in transport.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, **draw)
        move = transport(latent, conditions) - latent
        after = moved_log_probability(transport, head, latent, conditions)
    assert torch.linalg.matrix_rank(move, rtol=1e-9) == 4
    assert torch.allclose(after, torch.log_softmax(head(latent + move), dim=1), atol=1e-12)
    assert (after - before).abs().mean() > 0.01


@pytest.mark.parametrize("family", ["residual"])
def test_a_family_without_inverse_refuses_the_likelihood(family: str) -> None:
    with pytest.raises(ConfigError, match="no inverse"):
        build_maps(MapConfig(family=family), 3, 2).invertible(0)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="no inverse"):
        MapConfig(family=family, fit_by="likelihood")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="by zuko only"):
        MapConfig(structure="autoregressive", library="nflows")


def test_each_jet_takes_the_map_of_its_flavour(points: tuple[Tensor, Tensor]) -> None:
    maps = build_maps(MapConfig(), 3, 2)
    with torch.no_grad():
        maps.of(2).affine.constant[3] = 0.7  # type: ignore[union-attr,operator,index]
    flavour = torch.arange(300) % 4
    moved = maps(points[0], flavour, points[1]) - points[0]
    assert moved[flavour != 2].abs().max() <= 1e-6
    assert torch.allclose(moved[flavour == 2][:, 0], torch.tensor(0.7, dtype=torch.float64), atol=0.05)


def test_many_jets_go_through_in_parts(
    points: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = build_maps(MapConfig(), 3, 2)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter += 0.1
    flavour = torch.arange(300) % 3
    whole = maps(points[0], flavour, points[1])
    monkeypatch.setattr("selfcal.transport.maps.ROWS_AT_ONCE", 7)
    assert torch.allclose(maps(points[0], flavour, points[1]), whole, rtol=0, atol=1e-13)
    assert (whole - points[0]).abs().min() > 0


def test_the_two_libraries_compute_the_same_spline() -> None:
    """Independent implementations agree on one rational-quadratic spline with the same knots."""
    import zuko
    from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline

    generator = torch.Generator().manual_seed(5)
    widths, heights, slopes = (
        torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (8, 8, 7)
    )
    spline = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=5.0)
    x = torch.empty(50, dtype=torch.float64).uniform_(-4.9, 4.9, generator=generator)
    y, log_det = spline.call_and_ladj(x)

    def unnormalised(knots: Tensor) -> Tensor:
        return (knots.diff(dim=-1) / 10.0).log()

    derivative = spline.derivatives
    inverse_softplus = derivative + torch.log(-torch.expm1(-derivative))
    other, other_log_det = rational_quadratic_spline(
        x,
        unnormalised(spline.horizontal),
        unnormalised(spline.vertical),
        inverse_softplus,
        left=-5.0,
        right=5.0,
        bottom=-5.0,
        top=5.0,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    assert torch.allclose(y, other, atol=1e-8)
    assert torch.allclose(log_det, other_log_det, atol=1e-8)


@pytest.mark.parametrize("library", ["zuko", "nflows"])
def test_the_price_of_splines_leaves_out_the_affine_part(points: tuple[Tensor, Tensor], library: str) -> None:
    u, c = points
    built = build_maps(MapConfig(library=library, displacement_on="splines"), 3, 2).of(0)
    whole = build_maps(MapConfig(library=library), 3, 2).of(0)
    assert isinstance(built, FlowMap)
    assert isinstance(whole, FlowMap)
    with torch.no_grad():
        built.affine.constant += 0.2
    inner, log_det, origin = built.inverse_and_origin(u, c)
    torch.testing.assert_close(origin, u, atol=1e-8, rtol=0.0)
    assert float((inner - u).detach().abs().max()) > 0.1
    torch.testing.assert_close(inner, built.inverse(u, c), rtol=0.0, atol=0.0)
    torch.testing.assert_close(log_det, built.inverse_and_log_det(u, c)[1], rtol=0.0, atol=0.0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in built.couplings.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    whole.load_state_dict(built.state_dict())
    before_splines = built.couplings.inverse_and_log_det(u, c)[0]
    torch.testing.assert_close(built.inverse_and_origin(u, c)[2], before_splines, rtol=0.0, atol=0.0)
    torch.testing.assert_close(whole.inverse_and_origin(u, c)[2], whole.inverse(u, c), rtol=0.0, atol=0.0)


def test_a_price_of_splines_needs_splines_and_the_likelihood() -> None:
    for settings in ({"family": "brenier"}, {"family": "residual"}, {"fit_by": "distance"}):
        with pytest.raises(ValidationError, match="displacement_on: splines"):
            MapConfig(displacement_on="splines", **settings)
