"""Dettmers and Zettlemoyer (2019): class specialization of channels."""
