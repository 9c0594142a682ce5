"""The study of tables: flows of mixed data beside a Gaussian copula and peers."""
