"""The U-Net: its size, its shapes, its seeds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks.build import networks_of
from networks.unet import UNet, two_unets


def test_the_papers_number_of_parameters():
    assert sum(parameter.numel() for parameter in UNet(3, 2).parameters()) == 1_082_050


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("size", [(16, 16), (32, 48), (37, 51), (17, 31)])
def test_logits_have_the_size_of_the_image(channels, classes, size):
    network = UNet(channels, classes)
    logits = network(torch.randn(2, channels, *size))
    assert logits.shape == (2, classes, *size)
    logits.square().mean().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused


def test_forward_is_the_unet_written_out():
    """Five double convolutions, each but the first after a max-pool; four joins after bilinear upsampling; a head."""
    network = UNet(3, 2).eval()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:  # so that a norm left out or exchanged shows
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    assert [c.out_channels for c in convolutions[1:10:2]] == [16, 32, 64, 128, 128]
    assert all(c.kernel_size == (3, 3) for c in convolutions[:-1]) and convolutions[-1].kernel_size == (1, 1)
    assert (len(convolutions), len(norms)) == (19, 18)
    layers = iter(zip(convolutions, norms, strict=False))

    def double(x):
        for _ in range(2):
            convolution, norm = next(layers)
            x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
            x = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
            x = (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)
        return x

    image = torch.randn(2, 3, 37, 51)
    with torch.no_grad():
        levels = [double(image)]
        for _ in range(4):
            levels.append(double(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for skip in reversed(levels):
            x = double(torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)], dim=1))
        torch.testing.assert_close(network(image), convolutions[-1](x), rtol=1e-4, atol=1e-5)


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_two_unets_differ_and_come_from_their_seed_alone():
    torch.manual_seed(1)
    pair = two_unets(3, 2, seed=5)
    torch.manual_seed(2)
    assert states_equal(pair, two_unets(3, 2, seed=5))
    assert not states_equal(pair, two_unets(3, 2, seed=6))
    weights = zip(pair[0].parameters(), pair[1].parameters(), strict=True)
    assert all((a != b).any() for a, b in weights if a.ndim == 4)


def test_two_unets_leave_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    two_unets(3, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_gives_its_networks_back_in_eval_mode():
    trained = two_unets(1, 3, seed=5)
    for network in trained:
        network(torch.randn(2, 1, 16, 16))  # moves the running statistics of the batch norm
    restored = networks_of({"model": {"in_channels": 1, "num_classes": 3}, "networks": trained.state_dict()})
    assert states_equal(restored, trained)
    assert not any(module.training for module in restored.modules())
