"""The study of tables: flows of mixed data compared with a Gaussian copula and peers."""
