"""The choices that make a defence: base loss, rule, mixing and averaging."""
