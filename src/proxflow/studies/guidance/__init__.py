"""The guidance study: weight, interval and rule of guidance on a conditional model, beside an unconditional one."""
