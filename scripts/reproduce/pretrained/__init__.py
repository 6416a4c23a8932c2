"""SparseGPT (2023), Wanda and RIA (2024) on a pretrained encoder."""
