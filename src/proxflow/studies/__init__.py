"""What is reproduced, a folder a study: trials that are compared under the same conditions, and a report on them."""
