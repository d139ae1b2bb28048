"""Table 6's GFLOPs under every convention, and the list of GEMMs that the benchmark times."""

import pytest
import torch

from vmas.encoder import VideoEncoder
from vmas.encoder_cost import clip_vit_b16, count, gemms, gflops_table, hiera_base


@pytest.fixture(scope="module")
def table() -> list[dict]:
    return gflops_table()


def test_golden_flops_of_the_compared_models():
    assert 2 * sum(count(hiera_base(), 1, 3, 16, 224, 224).values()) == 203_451_236_352
    assert 2 * sum(count(clip_vit_b16(), 16, 3, 224, 224).values()) == 562_017_927_168


def test_table_has_every_convention(table):
    got = [
        [round(r[k], d) for k, d in (("conv_gmac", 2), ("linear_gmac", 2), ("attention_gmac", 2), ("total_1x", 1),
                                     ("total_2x", 1), ("linear_2x", 2))] + [r["paper"]]
        for r in table
    ]  # fmt: skip
    assert got == [
        [1.85, 267.71, 11.45, 281.0, 562.0, 535.43, 281.6],
        [1.06, 70.06, 30.61, 101.7, 203.5, 140.11, 140.2],
        [6.37, 65.12, 1.79, 73.3, 146.6, 130.25, 130.7],
        [6.37, 65.12, 4.74, 76.2, 152.5, 130.25, 130.7],
        [6.37, 65.12, 48.96, 120.5, 240.9, 130.25, 130.7],
    ]


def test_no_single_convention_gives_the_papers_column(table):
    for key in ("total_1x", "total_2x", "linear_2x"):
        assert any(abs(r[key] / r["paper"] - 1) > 0.05 for r in table), key


@pytest.mark.parametrize("stage_1", [(4, 4), (8, 8), (28, 28)])
def test_list_of_gemms_adds_up_to_the_counted_macs(stage_1):
    with torch.device("meta"):
        encoder = VideoEncoder(windows=(stage_1, (7, 7), None, None))
    macs = count(encoder, 2, 3, 96, 224, 224)
    listed = gemms(encoder, clips=2)
    for kind, n in macs.items():
        assert sum(g.macs for g in listed if g.kind == kind) == n
