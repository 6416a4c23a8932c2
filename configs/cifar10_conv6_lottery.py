"""Lottery tickets of Conv-6 on CIFAR-10, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/lottery.py --config=configs/cifar10_conv6_lottery.py \
    --workdir=runs/conv6_lottery

For a GPU or TPU; not run to its end here yet. 40 epochs of 750 steps a level (30,000 in
the paper), 15 % of the convolutions, 20 % of the dense layers and 10 % of the output a
round. The paper's best tickets: 2.5 times as fast at 15.1 % of the weights, and 3.3
points more accurate at 26.4 %.
"""

from ml_collections import config_dict

from sparsejax.experiments.lottery import conv_net


def get_config() -> config_dict.ConfigDict:
  return conv_net(6, learning_rate=3e-4, num_epochs=40, conv_rate=0.15)
