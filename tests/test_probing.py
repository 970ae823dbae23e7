"""Linear probes: where the feature holds the label they are perfect, where it holds nothing they guess."""

import pytest
import torch
from torch import nn

import auxnet
from auxnet.network import AuxNet
from auxnet.probing import linear_answers, pooled_features, probe
from auxnet.residual import Classifier


def colours(n, seed):
    """Images of one colour each, and of a class that the colour alone decides; channel 2 is noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=g)
    images = 0.1 * torch.randn(n, 3, 6, 6, generator=g)
    images[:, 0] += (labels == 0)[:, None, None]
    images[:, 1] += (labels == 1)[:, None, None]
    return images, labels


def kept_then_lost():
    """Layer 1 passes the image on, layer 2 keeps the noise of channel 2 alone."""
    keeps, loses = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        keeps.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        loses.weight.copy_(torch.diag(torch.tensor([0.0, 0.0, 1.0])).view(3, 3, 1, 1))
    return AuxNet([nn.Sequential(keeps, loses)], [Classifier(3, 3, False)], (3,))


def test_a_probe_is_perfect_where_the_feature_holds_the_label_and_guesses_where_it_does_not():
    first, second = probe(kept_then_lost(), [colours(200, 0)], [colours(300, 1)])
    assert (first.layer, first.accuracy, first.high) == (1, 1.0, 1.0)
    assert second.layer == 2
    assert second.low < 1 / 3 < second.high
    assert (first.trained_on, first.images) == (200, 300)


def test_features_are_means_over_positions_in_evaluation_mode():
    net = auxnet.resnet(8, 2).train()
    net.segments[0][1].eval()
    before = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    images = torch.randn(7, 3, 8, 8)
    features, labels = pooled_features(net, [(images[:4], torch.zeros(4)), (images[4:], torch.ones(3))])
    assert [m.training for m in net.modules()] == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in net.state_dict().items())
    assert [*features] == [1, 3, 5, 7]
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    with torch.no_grad():
        cuts = net.eval().features(images)
    for layer, cut in zip((5, 7), cuts, strict=True):
        torch.testing.assert_close(features[layer], cut.mean((2, 3)))


def test_scale_and_shift_of_a_feature_change_no_answer():
    images, labels = colours(100, 0)
    x = images.mean((2, 3))
    assert linear_answers(x, labels, x).equal(labels)
    other = x * torch.tensor([1e4, 1e-2, 1.0]) + 7
    assert linear_answers(other, labels, other).equal(labels)


def test_tokens_are_averaged_over_their_places():
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    net = AuxNet([nn.Sequential(nn.Conv2d(3, 5, 1), Tokens())], [nn.Flatten()], (2,))
    images = torch.randn(2, 3, 4, 4)
    (pooled,) = pooled_features(net, [(images, torch.zeros(2))])[0].values()
    torch.testing.assert_close(pooled, net.segments[0][0](images).mean((2, 3)).detach())


def test_what_cannot_be_probed_is_refused():
    images, labels = colours(10, 0)
    with pytest.raises(ValueError, match="10 images to train probes on are of one class"):
        probe(kept_then_lost(), [(images, labels * 0)], [(images, labels)])
    with pytest.raises(ValueError, match="no images to probe with"):
        probe(kept_then_lost(), [], [(images, labels)])
