"""Frankle and Carbin (2019), the lottery ticket hypothesis: MNIST."""
