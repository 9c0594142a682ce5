"""The study of emoji: a flow of small colour pictures and its student of one evaluation, and what of it is memorised."""
