"""Xiao et al. (2018): plain CNNs of up to 10,000 layers."""
