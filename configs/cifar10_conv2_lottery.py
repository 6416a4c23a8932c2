"""Lottery tickets of Conv-2 on CIFAR-10, as in Frankle & Carbin (2019).

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/lottery.py --config=configs/cifar10_conv2_lottery.py \
    --workdir=runs/conv2_lottery

For a GPU or TPU; not run to completion here yet. Each level trains for 27 epochs of 750
steps (20,000 steps in the paper). Each round prunes 10 % of the convolutions, 20 % of
the dense layers and 10 % of the output layer. The paper's best tickets train 3.5 times
as fast at 8.8 % of the weights, and are 3.4 points more accurate at 4.6 %.
"""

from ml_collections import config_dict

from sparsejax.experiments.lottery import conv_net


def get_config() -> config_dict.ConfigDict:
  return conv_net(2, learning_rate=2e-4, num_epochs=27, conv_rate=0.1)
