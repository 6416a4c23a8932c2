"""Dettmers and Zettlemoyer (2019), sparse networks from scratch: MNIST."""
