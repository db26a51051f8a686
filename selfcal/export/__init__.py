"""Scale factors in the formats that analyses read."""
