"""The choices that make a defence: base loss, rule, mixing, averaging and calibration."""
