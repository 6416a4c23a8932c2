"""Block-sparse networks compared with dense ones of equal cost."""
